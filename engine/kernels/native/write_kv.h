// Puts one token's keys and values where its slot in the paged cache is.
#pragma once
#include <cstdint>
#include <cstring>

// key and value [kv heads][head_dim]; a slot is block * block_size + offset, and a negative one means nowhere.
template <class Element>
void write_token(const Element* key, const Element* value, Element* key_cache, Element* value_cache, int64_t slot,
                 int kv_heads, int block_size, int head_dim) {
    if (slot < 0) return;
    const int64_t block = slot / block_size, offset = slot % block_size;
    for (int head = 0; head < kv_heads; ++head) {
        const int64_t to = ((block * kv_heads + head) * block_size + offset) * head_dim;
        std::memcpy(key_cache + to, key + head * head_dim, head_dim * sizeof(Element));
        std::memcpy(value_cache + to, value + head * head_dim, head_dim * sizeof(Element));
    }
}
