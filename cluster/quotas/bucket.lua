-- The book of limits (cluster/quotas/book.py, cluster/quotas/bucket.py) in Redis. It must decide as they do, to the last
-- bit: tests/deployments/test_redis_book.py plays the same turns to both.
--
-- KEYS[1]: prefix of all keys. ARGV: the gateway's name, its QuotaTurn as msgpack. Returns its QuotaAnswer, or nil.
-- <prefix>book: a hash of clock, updated, epoch, full, members: m:<name> = seen, counts, number, answer, and who is
-- forgotten: g:<name> = when, by the clock.
-- <prefix>b:<key>: a hash of level, at, and h:<name> = what that gateway holds. Kept for an hour after its last use.
if redis.replicate_commands then redis.replicate_commands() end

local WINDOW_S, EPSILON, LEASE_S, FORGET_S, KEEP_S = 60.0, 1e-6, 2.0, 10.0, 3600
local prefix, name = KEYS[1], ARGV[1]
local frame = cmsgpack.unpack(ARGV[2])
local turn = {number = frame[2], gateways = frame[3], epoch = frame[4], seen = frame[5], changes = frame[6], asks = frame[7]}
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function exact(number) return string.format('%.17g', number) end

local function hash(key)
  local flat, found = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- The book

local book_key = prefix .. 'book'
local stored = hash(book_key)
local clock, updated = tonumber(stored.clock or '0'), tonumber(stored.updated or '0')
local epoch, began_full = stored.epoch or '', stored.full == '1'
local members, gone = {}, {}
for field, value in pairs(stored) do
  if string.sub(field, 1, 2) == 'g:' then gone[string.sub(field, 3)] = tonumber(value) end
  if string.sub(field, 1, 2) == 'm:' then
    local member = cmsgpack.unpack(value)
    members[string.sub(field, 3)] = {seen = member[1], counts = member[2], number = member[3], answer = member[4]}
  end
end

local me = members[name] or {seen = -math.huge, counts = false, number = 0}
members[name] = me
if turn.number == me.number then return me.answer end
if turn.number < me.number then return nil end

local is_other = turn.epoch ~= '' and turn.epoch ~= epoch
local has_lost = turn.epoch == epoch and turn.seen > clock + EPSILON
if epoch == '' or has_lost or (is_other and began_full) then
  began_full = turn.epoch == ''
  epoch = name .. '/' .. string.format('%d', turn.number)
  clock = began_full and WINDOW_S or 0.0
  for other in pairs(gone) do redis.call('HDEL', book_key, 'g:' .. other) end
  gone = {}
end

local present_s = 0.0
for _, member in pairs(members) do
  if member.counts then present_s = present_s + math.max(0.0, math.min(now, member.seen + LEASE_S) - updated) end
end
clock = clock + math.min(math.max(0.0, now - updated), present_s / turn.gateways)
updated = math.max(updated, now)
for other, member in pairs(members) do
  if other ~= name and member.seen < now - FORGET_S then
    members[other] = nil
    gone[other] = clock
    redis.call('HDEL', book_key, 'm:' .. other)
    redis.call('HSET', book_key, 'g:' .. other, exact(clock))
  end
end
for other, when in pairs(gone) do
  if other == name or when < clock - WINDOW_S then
    gone[other] = nil
    redis.call('HDEL', book_key, 'g:' .. other)
  end
end

local is_back = now - me.seen > LEASE_S
me.seen, me.counts, me.number = now, not is_back, turn.number
local num_present, away = 0, {}
for other, member in pairs(members) do
  if member.counts and now - member.seen <= LEASE_S then num_present = num_present + 1 else table.insert(away, other) end
end
local away_share = math.max(0.0, 1.0 - num_present / turn.gateways)

-- Buckets, filled up to now; those of an earlier epoch are not there

local buckets = {}

local function fill(bucket, capacity, at)
  local held = 0.0
  for _, amount in pairs(bucket.held) do held = held + amount end
  bucket.level = math.min(bucket.level + capacity / WINDOW_S * (at - bucket.at), capacity - held)
  bucket.at = at
end

local function bucket_of(key, capacity)
  local bucket = buckets[key]
  if bucket == nil then
    local fields = hash(prefix .. 'b:' .. key)
    if fields.epoch ~= epoch then
      bucket = {level = math.min(capacity, capacity / WINDOW_S * clock), at = clock, held = {}}
    else
      bucket = {level = tonumber(fields.level), at = tonumber(fields.at), held = {}}
      for field, amount in pairs(fields) do
        if string.sub(field, 1, 2) == 'h:' then bucket.held[string.sub(field, 3)] = tonumber(amount) end
      end
    end
    buckets[key] = bucket
  end
  local burned = {}
  for holder in pairs(bucket.held) do
    if members[holder] == nil then table.insert(burned, {gone[holder] or clock - WINDOW_S, holder}) end
  end
  table.sort(burned, function(one, other) return one[1] < other[1] end)
  for _, lost in ipairs(burned) do
    fill(bucket, capacity, math.max(lost[1], bucket.at))
    bucket.held[lost[2]] = nil
  end
  fill(bucket, capacity, clock)
  return bucket
end

for _, change in ipairs(turn.changes) do
  local bucket = bucket_of(change[1], change[2])
  local held = bucket.held[name] or 0.0
  local burned = math.min(change[3], held)
  local released = math.min(math.max(change[4], 0.0), held - burned)
  local rest = held - burned - released
  bucket.held[name] = rest > EPSILON and rest or nil
  bucket.level = bucket.level + released - change[5]
end

local replies = {}
if not is_back then
  for _, ask in ipairs(turn.asks) do
    local granted, heirs_of = true, ask[2] and away or {}
    for _, want in ipairs(ask[1]) do
      local bucket = bucket_of(want[1], want[2])
      local usable = bucket.level - away_share * want[2]
      for _, dead in ipairs(heirs_of) do usable = usable + (bucket.held[dead] or 0.0) end
      granted = granted and usable >= want[3] - EPSILON
    end
    local left = {}
    for _, want in ipairs(ask[1]) do
      local bucket, amount = buckets[want[1]], want[3]
      if granted then
        bucket.held[name] = (bucket.held[name] or 0.0) + amount
        for _, dead in ipairs(heirs_of) do
          local inherited = math.min(amount, bucket.held[dead] or 0.0)
          if inherited > 0.0 then
            bucket.held[dead] = bucket.held[dead] - inherited
            amount = amount - inherited
          end
        end
        bucket.level = bucket.level - amount
      end
      table.insert(left, bucket.level - away_share * want[2])
    end
    table.insert(replies, {granted, left})
  end
end

-- What is kept

for key, bucket in pairs(buckets) do
  local bucket_key = prefix .. 'b:' .. key
  local fields = {'epoch', epoch, 'level', exact(bucket.level), 'at', exact(bucket.at)}
  for holder, amount in pairs(bucket.held) do
    table.insert(fields, 'h:' .. holder)
    table.insert(fields, exact(amount))
  end
  redis.call('DEL', bucket_key)
  redis.call('HSET', bucket_key, unpack(fields))
  redis.call('EXPIRE', bucket_key, KEEP_S)
end
me.answer = cmsgpack.pack({'quota', turn.number, epoch, clock, is_back, replies})
redis.call('HSET', book_key, 'clock', exact(clock), 'updated', exact(updated), 'epoch', epoch, 'full', began_full and '1' or '0',
  'm:' .. name, cmsgpack.pack({me.seen, me.counts, me.number, me.answer}))
return me.answer
