"""What each step of one engine computes, and what its outcome means for each sequence.

    add -> waiting --admit--> running --finish--> ended          abort: from anywhere to ended
              ^---- preempt ----'

No phases: a sequence's computed tokens catch up with its known tokens. A new prompt, a decode step, a chunk of a
long prompt, a prefix hit, a preempted sequence and one that goes on after an earlier attempt are the same case.

Order of service is (priority, arrival). In each step
1. running sequences that lack one token are scheduled first, so that streams never stall behind long prompts (the
   budget suffices: nobody joins a step whose budget is used up, so there are never more sequences than budget);
2. running sequences that lack more get what is left of the token budget;
3. waiting sequences join while there are places, budget and blocks for all their known tokens, plus a spare block for
   each running sequence, so that who joins is not preempted at once. Nobody overtakes one that finds no blocks. One
   whose next block is being computed by a running sequence waits for it and keeps its place.
When a running sequence finds no block, the last in the order of service (perhaps itself) is preempted: its blocks are
taken, it waits with its old arrival number and is computed again, its registered blocks being prefix hits if they
survive. So the first in the order always advances, and every sequence ends. Nobody is preempted to let another join.

With pipeline stages several steps are under way at a time, and results come in their order. A sequence whose next token
is being sampled waits for it; chunks of one prompt follow each other. So that all stages have work, each step takes an
even share: of the running sequences that lack one token, and of all tokens to compute. Nobody in a step under way is
preempted: who needs its blocks waits for the result. Blocks of a sequence that is aborted there are free at once: ranks
compute steps in order, so whoever gets such a block writes it later.
"""

from bisect import bisect_left, insort
from collections import Counter, deque

import msgspec

from engine.batching import BatchingPolicy, batching_policy
from engine.config import EngineConfig, EngineInfo
from engine.errors import RequestRefused
from engine.kv_cache_manager import KVCacheManager
from engine.request import EngineLoad, FinishReason, GenerateRequest, TokenChunk
from engine.sequence import Sequence, SequenceStatus, precedence_of
from engine.step import NewSequence, SampledToken, ScheduledSequence, StepPlan, StepResult
from engine.unfit import why_unfit

_WORTH_A_STEP = 128  #: tokens; a smaller share of a prompt is not left to another step, which reads all weights again


class Totals(msgspec.Struct):
    """Counts since start, as reported in `EngineLoad`."""

    steps: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    accepted: int = 0
    recomputed_tokens: int = 0


class Scheduler:
    """Owns every sequence of one engine. Knows no tensor, thread or clock: `now` is an argument."""

    def __init__(self, config: EngineConfig, info: EngineInfo) -> None:
        self._config = config
        self._info = info
        self._kv = KVCacheManager(info.num_blocks, info.block_size, info.weights_revision, config.prefix_caching)
        self._batching: BatchingPolicy = batching_policy(config)
        self._waiting: list[Sequence] = []  # both in the order of service
        self._running: list[Sequence] = []
        self._by_request: dict[str, Sequence] = {}  # waiting and running
        self._running_by_id: dict[int, Sequence] = {}
        self._num_arrived = 0  # calls of `add`, refused ones included
        self._dropped_ids: list[int] = []  # what the ranks must forget with the next plan
        self._in_flight: deque[StepPlan] = deque()  # scheduled, their results not yet seen
        self._max_running = min(info.max_num_seqs, info.max_steps_in_flight * config.max_batched_tokens)
        self._num_uncomputed = 0  # over waiting and running
        self._num_remaining = 0  # output tokens allowed and not yet sampled, over waiting and running
        self._num_blocks_wanted = 0  # by waiting sequences, for their known tokens
        self._totals = Totals()

    def refuse_unfit(self, request: GenerateRequest) -> None:
        """Raise `RequestRefused` for a request that can never run here. Reads no state: any thread may call it."""
        if why := why_unfit(request, self._info):
            raise RequestRefused(request.request_id, why)

    def add(self, request: GenerateRequest, now: float) -> list[TokenChunk]:
        """Let the request wait. A newer attempt ends an older one here; its last chunk is returned.

        Raises `RequestRefused` for what can never run, and for an attempt not newer than one that is here.
        """
        self._totals.accepted += 1  # refused below or not: it is off the submitter's hands
        self._num_arrived += 1
        self.refuse_unfit(request)
        replaced = self._by_request.get(request.request_id)
        if replaced is not None and replaced.request.attempt >= request.attempt:
            raise RequestRefused(request.request_id, f"attempt {replaced.request.attempt} of it is here already")
        chunks = self.abort(request.request_id)
        eos_token_ids = () if request.sampling.ignore_eos else self._info.eos_token_ids
        sequence = Sequence(
            sequence_id=self._num_arrived,
            request=request,
            ending_token_ids=eos_token_ids + request.sampling.stop_token_ids,
            token_ids=request.prompt_token_ids + request.output_token_ids,
            precedence=(request.priority, self._num_arrived),
        )
        if sequence.wants_prompt_logprobs:
            sequence.prompt_logprobs = [None]
        self._by_request[request.request_id] = sequence
        self._num_uncomputed += sequence.num_tokens
        self._num_remaining += sequence.num_remaining_tokens
        self._wait(sequence, now)
        return chunks

    def abort(self, request_id: str, attempt: int | None = None) -> list[TokenChunk]:
        """End a request from outside (only that attempt, if given). Returns its last chunk, if it is here."""
        sequence = self._by_request.get(request_id)
        if sequence is None or attempt not in (None, sequence.request.attempt):
            return []
        return self._end_early(sequence, FinishReason.ABORT, "")

    def hand_back(self, why: str = "") -> list[TokenChunk]:
        """End everything here so that another engine goes on. Returns each request's last chunk.

        `why` says what its ranks died of: no result will come, and no block holds anything; empty: all is well.
        """
        blamed = {id(sequence): why for sequence in self._running}  # those that only wait have killed nobody
        ends = [(sequence, blamed.get(id(sequence), "")) for sequence in self._by_request.values()]
        chunks = [chunk for sequence, how in ends for chunk in self._end_early(sequence, FinishReason.MIGRATE, how)]
        if why:
            self._in_flight.clear()
            self._dropped_ids.clear()
            self._kv.forget_all()
        return chunks

    @property
    def num_in_flight(self) -> int:
        """Steps scheduled whose results are still to come."""
        return len(self._in_flight)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to compute now, or as much as possible under way."""
        if len(self._in_flight) == self._info.max_steps_in_flight:
            return None
        scheduled: list[ScheduledSequence] = []
        share = self._share_of(self._num_uncomputed)
        budget = given = min(self._config.max_batched_tokens, max(_WORTH_A_STEP, share))
        budget = self._continue_running(scheduled, budget, now)
        new_sequences: list[NewSequence] = []
        budget = self._admit_waiting(scheduled, new_sequences, budget, now)
        if not scheduled:
            return None
        self._totals.steps += 1
        room = self._config.max_batched_tokens - (given - budget)
        num_padding_tokens = self._batching.padding_tokens(len(self._running), room)
        plan = StepPlan(self._totals.steps, self._dropped_ids, new_sequences, scheduled, num_padding_tokens)
        self._dropped_ids = []
        self._in_flight.append(plan)
        return plan

    def _share_of(self, count: int) -> int:
        """How many of `count` a step takes, so that all steps under way have the same."""
        return -(-count // self._info.max_steps_in_flight)

    def _continue_running(self, scheduled: list[ScheduledSequence], budget: int, now: float) -> int:
        """Schedule those that run already; returns the budget left. Preempts whom the blocks do not suffice for."""
        running, kv = self._running, self._kv
        most = self._share_of(len(running))
        catching_up: list[Sequence] = []
        index = 0
        while index < len(running):  # the list gets shorter at its end when sequences are preempted
            sequence = running[index]
            index += 1
            num_tokens = sequence.num_unscheduled_tokens
            if num_tokens > 1:  # these have had all their blocks since they were admitted
                catching_up.append(sequence)
                continue
            if num_tokens == 0 or len(scheduled) == most:
                continue
            start = sequence.num_scheduled_tokens
            new_block_ids: list[int] | None = []
            if start == len(sequence.block_ids) * kv.block_size:
                new_block_ids = self._grow(sequence, now)
            if new_block_ids is None:
                break  # whose blocks it waits for comes later, and is not put under way again
            scheduled.append(ScheduledSequence(sequence.sequence_id, start, 1, new_block_ids, True))
            sequence.num_scheduled_tokens += 1
            budget -= 1
        for sequence in catching_up:  # still there: who is preempted comes later than all looked at so far
            if budget:
                budget -= self._schedule_chunk(sequence, scheduled, [], budget)
        return budget

    def _grow(self, sequence: Sequence, now: float) -> list[int] | None:
        """One more block, taken from the last in the order of service if need be.

        None if that is `sequence`, which waits then, or one in a step under way, whose result is waited for.
        """
        while (new_block_ids := self._kv.grow(sequence)) is None:
            victim = self._running[-1]
            if victim.is_in_flight:
                break
            self._preempt(victim, now)
            if victim is sequence:
                break
        return new_block_ids

    def _admit_waiting(
        self, scheduled: list[ScheduledSequence], new_sequences: list[NewSequence], budget: int, now: float
    ) -> int:
        """Let waiting sequences join and compute their first chunk; returns the budget left."""
        places = self._batching.places(len(self._running), len(self._waiting), now)
        places = min(places, self._max_running - len(self._running))
        index = 0
        while index < places and budget and index < len(self._waiting):
            sequence = self._waiting[index]
            hit = self._kv.lookup_prefix(sequence)
            if hit.next_is_being_computed:
                index += 1
                continue
            if not self._kv.admit(sequence, hit, num_spare=len(self._running)):
                self._batching.close_batch()
                break
            del self._waiting[index]
            places -= 1
            self._admit(sequence)
            new_sequences.append(sequence.as_new())
            budget -= self._schedule_chunk(sequence, scheduled, sequence.block_ids.copy(), budget)
        return budget

    def _schedule_chunk(
        self, sequence: Sequence, scheduled: list[ScheduledSequence], new_block_ids: list[int], budget: int
    ) -> int:
        """Schedule as many tokens of `sequence` as the budget allows; returns how many."""
        num_unscheduled = sequence.num_unscheduled_tokens
        num_tokens = min(num_unscheduled, budget)
        start, samples = sequence.num_scheduled_tokens, num_tokens == num_unscheduled
        scheduled.append(ScheduledSequence(sequence.sequence_id, start, num_tokens, new_block_ids, samples))
        sequence.num_scheduled_tokens += num_tokens
        return num_tokens

    def update(self, result: StepResult) -> list[TokenChunk]:
        """Take in what the oldest plan computed. Returns the new tokens; who was aborted meanwhile gets none."""
        plan = self._in_flight.popleft()
        assert plan.step == result.step, f"result of step {result.step}, not of step {plan.step}"
        for prompt in result.prompt_logprobs:
            sequence = self._running_by_id.get(prompt.sequence_id)
            if sequence is not None and sequence.prompt_logprobs is not None:
                assert len(sequence.prompt_logprobs) == prompt.start + 1, "prompt log probabilities have a gap"
                sequence.prompt_logprobs.extend(prompt.logprobs)
        sampled = {token.sequence_id: token for token in result.sampled}
        chunks = []
        for item in plan.scheduled:
            sequence = self._running_by_id.get(item.sequence_id)
            if sequence is None:
                continue
            token = sampled[item.sequence_id] if item.samples else None
            if token is not None and token.error:
                self._end(sequence, trusted=False)
                chunks.append(self._last_chunk(sequence, FinishReason.ERROR, token.error))
                continue
            again = sequence.num_lost_tokens - sequence.num_computed_tokens
            self._totals.recomputed_tokens += max(0, min(item.num_tokens, again))
            sequence.num_computed_tokens += item.num_tokens
            self._num_uncomputed -= item.num_tokens
            self._kv.register_computed(sequence)
            if token is not None:
                chunks.append(self._append(sequence, token))
        if self._config.check_invariants:
            self.check_invariants()
        return self._batching.deliver(chunks, len(self._running), len(self._waiting))

    def _append(self, sequence: Sequence, token: SampledToken) -> TokenChunk:
        """Add a sampled token; end the sequence if it was the last."""
        sampling = sequence.request.sampling
        index = sequence.num_output_tokens
        sequence.token_ids.append(token.token_id)
        self._num_uncomputed += 1
        self._num_remaining -= 1
        self._totals.output_tokens += 1
        finish = None
        if token.token_id in sequence.ending_token_ids:  # never sampled below `min_tokens`
            finish = FinishReason.STOP
        elif index + 1 == sampling.max_tokens:
            finish = FinishReason.LENGTH
        if finish is not None:
            self._end(sequence)
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        first = index == len(sequence.request.output_token_ids)
        return TokenChunk(
            sequence.request.request_id,
            sequence.request.attempt,
            index,
            [token.token_id],
            None if token.logprobs is None else [token.logprobs],
            finish,
            prompt_logprobs,
            sequence.num_cached_tokens if first else 0,
        )

    def _wait(self, sequence: Sequence, now: float) -> None:
        insort(self._waiting, sequence, key=precedence_of)
        self._num_blocks_wanted += self._kv.num_blocks_for(sequence.num_tokens)
        self._batching.arrived(now)

    def _admit(self, sequence: Sequence) -> None:
        """Move a sequence that has got its blocks to the running ones."""
        sequence.status = SequenceStatus.RUNNING
        insort(self._running, sequence, key=precedence_of)
        self._running_by_id[sequence.sequence_id] = sequence
        self._num_blocks_wanted -= self._kv.num_blocks_for(sequence.num_tokens)
        num_computed = sequence.num_computed_tokens
        self._num_uncomputed -= num_computed
        self._batching.joined(sequence.num_uncomputed_tokens)
        if not sequence.was_preempted:
            sequence.num_cached_tokens = min(num_computed, sequence.num_prompt_tokens)
            self._totals.cached_tokens += sequence.num_cached_tokens
            self._totals.prompt_tokens += sequence.num_prompt_tokens

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Take the blocks of the last in the order of service; it will be computed again."""
        self._totals.preemptions += 1
        self._leave_running(sequence)
        self._num_uncomputed += sequence.num_computed_tokens
        sequence.num_lost_tokens = max(sequence.num_lost_tokens, sequence.num_computed_tokens)
        self._kv.free(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.was_preempted = True
        if sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs = [None]
        self._wait(sequence, now)

    def _end_early(self, sequence: Sequence, finish: FinishReason, error: str) -> list[TokenChunk]:
        """End a waiting or running sequence that did not end by itself."""
        self._end(sequence)
        chunk = self._last_chunk(sequence, finish, error)
        return self._batching.deliver([chunk], len(self._running), len(self._waiting))

    def _end(self, sequence: Sequence, trusted: bool = True) -> None:
        """Forget a sequence and take its blocks; if not `trusted`, their contents must not be shared."""
        self._num_uncomputed -= sequence.num_uncomputed_tokens
        self._num_remaining -= sequence.num_remaining_tokens
        if sequence.status is SequenceStatus.RUNNING:
            self._leave_running(sequence)
            self._kv.free(sequence, trusted)
        else:
            del self._waiting[bisect_left(self._waiting, sequence.precedence, key=precedence_of)]
            self._num_blocks_wanted -= self._kv.num_blocks_for(sequence.num_tokens)
        sequence.status = SequenceStatus.ENDED
        del self._by_request[sequence.request.request_id]

    def _leave_running(self, sequence: Sequence) -> None:
        del self._running[bisect_left(self._running, sequence.precedence, key=precedence_of)]
        del self._running_by_id[sequence.sequence_id]
        self._dropped_ids.append(sequence.sequence_id)

    def _last_chunk(self, sequence: Sequence, finish: FinishReason, error: str) -> TokenChunk:
        asked = sequence.request
        return TokenChunk(asked.request_id, asked.attempt, sequence.num_output_tokens, [], finish=finish, error=error)

    def wake_at(self) -> float | None:
        """When to schedule again though nothing arrives (a batch that closes by time)."""
        return self._batching.wake_at(len(self._running), len(self._waiting))

    def load(self) -> EngineLoad:
        """What the engine holds now. O(1)."""
        num_running, num_waiting = len(self._running), len(self._waiting)
        totals = self._totals
        return EngineLoad(
            totals.steps - len(self._in_flight),
            num_running,
            num_waiting,
            max(0, self._info.max_num_seqs - num_running - num_waiting),
            max(0, self._kv.pool.num_free - self._num_blocks_wanted),
            self._num_uncomputed - num_running,  # the last known token of each is sampled, not queued
            totals.accepted,
            totals.preemptions,
            totals.cached_tokens,
            totals.prompt_tokens,
            totals.output_tokens,
            self._num_remaining,
            totals.recomputed_tokens,
        )

    def check_invariants(self) -> None:
        """Assert that the bookkeeping of sequences and blocks agrees with itself."""
        waiting, running = self._waiting, self._running
        everyone = waiting + running
        self._kv.check_invariants(running)
        for queue in (waiting, running):
            assert queue == sorted(queue, key=precedence_of), "a queue is out of order"
        assert all(s.status is SequenceStatus.WAITING and not s.block_ids for s in waiting)
        assert all(s.status is SequenceStatus.RUNNING for s in running)
        assert self._running_by_id == {s.sequence_id: s for s in running}
        assert self._by_request == {s.request.request_id: s for s in everyone}
        assert all(s.num_uncomputed_tokens > 0 for s in everyone), "a sequence has nothing left to compute"
        assert len(running) <= self._max_running, "the steps under way do not hold all running sequences"
        under_way = Counter[int]()
        for plan in self._in_flight:
            under_way.update({item.sequence_id: item.num_tokens for item in plan.scheduled})
        for s in everyone:
            assert s.num_scheduled_tokens - s.num_computed_tokens == under_way[s.sequence_id], "not under way as noted"
        assert self._num_uncomputed == sum(s.num_uncomputed_tokens for s in everyone)
        assert self._num_remaining == sum(s.num_remaining_tokens for s in everyone)
        assert self._num_blocks_wanted == sum(self._kv.num_blocks_for(s.num_tokens) for s in waiting)
