// SPDX-License-Identifier: Apache-2.0
// The kept memory: a short list of blocks behind a lock. A call takes a handful of blocks, so the
// list is searched from end to end.
#include "head_scratch.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace satori_fast {

namespace {

constexpr int64_t kKeptFloats = 16 * 1024 * 1024; // 64 MiB: what one chunk of tokens takes
constexpr std::align_val_t kAlignment{64};

struct Block {
    float* memory;
    int64_t num_floats;
};

class Kept {
  public:
    // The smallest block that is large enough and not much too large, or none.
    Block take(int64_t num_floats) {
        const std::lock_guard<std::mutex> locked(mutex_);
        auto best = blocks_.end();
        for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
            if (block->num_floats >= num_floats && block->num_floats <= 2 * num_floats &&
                (best == blocks_.end() || block->num_floats < best->num_floats))
                best = block;
        if (best == blocks_.end())
            return {nullptr, 0};
        const Block found = *best;
        blocks_.erase(best);
        total_ -= found.num_floats;
        return found;
    }

    // Keeps the block; those kept longest go when there is too much.
    void give(Block block) {
        const std::lock_guard<std::mutex> locked(mutex_);
        blocks_.push_back(block);
        total_ += block.num_floats;
        while (total_ > kKeptFloats) {
            total_ -= blocks_.front().num_floats;
            ::operator delete[](blocks_.front().memory, kAlignment);
            blocks_.erase(blocks_.begin());
        }
    }

  private:
    std::mutex mutex_;
    std::vector<Block> blocks_;
    int64_t total_ = 0;
};

// Never destroyed: Python may give memory back after this library's end.
Kept& kept() {
    static Kept* const blocks = new Kept;
    return *blocks;
}

} // namespace

void GiveBack::operator()(float* memory) const { kept().give({memory, num_floats}); }

Scratch take_scratch(int64_t num_floats) {
    num_floats = std::max<int64_t>(num_floats, 16);
    Block block = kept().take(num_floats);
    if (!block.memory) {
        const size_t bytes = static_cast<size_t>(num_floats) * sizeof(float);
        block = {static_cast<float*>(::operator new[](bytes, kAlignment)), num_floats};
    }
    return Scratch(block.memory, GiveBack{block.num_floats});
}

} // namespace satori_fast
