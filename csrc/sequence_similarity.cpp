// SPDX-License-Identifier: Apache-2.0
// Ratcliff-Obershelp similarity, equal to Python's difflib.SequenceMatcher(None, a, b).ratio().
//
// difflib finds the longest block common to both, then does the same on what lies to the left and
// to the right of it. Which of several longest blocks it takes changes the ratio, so its order is
// kept: earliest in a, then earliest in b. Stripping a common prefix first would change it too.
//
// A region is searched row by row (a row is a token of a). Where tokens are rare, a row visits the
// positions of its token in b; where they are common, or the region is narrow, it compares its
// token with all of b at once, in vectors.
#include "operations.h"
#include "parallel.h"

#include <algorithm>
#include <exception>
#include <vector>

#if defined(__GNUC__) && defined(__x86_64__)
#define HAS_DENSE_ROWS 1
#include <immintrin.h>
#endif

namespace satori_fast {
namespace {

struct Match {
    int32_t i, j, size;
};

struct Region {
    int32_t a_begin, a_end, b_begin, b_end;
};

// Gives each distinct token the next number, from 0. Open addressing; at most half full.
class Numbering {
  public:
    explicit Numbering(int32_t most) {
        while ((size_t(1) << bits_) < 2 * static_cast<size_t>(most) + 2)
            ++bits_;
        slots_.resize(size_t(1) << bits_, Slot{0, -1});
    }

    int32_t find(int64_t token) const { return slots_[slot_of(token)].number; } // -1 if unknown

    int32_t number(int64_t token) {
        Slot& slot = slots_[slot_of(token)];
        if (slot.number < 0)
            slot = {token, size_++};
        return slot.number;
    }

    int32_t size() const { return size_; }

  private:
    struct Slot {
        int64_t token;
        int32_t number;
    };

    size_t slot_of(int64_t token) const {
        // Fibonacci hashing: the top bits of a product with 2^64 / golden ratio.
        size_t at = (static_cast<uint64_t>(token) * 0x9E3779B97F4A7C15U) >> (64 - bits_);
        while (slots_[at].number >= 0 && slots_[at].token != token)
            at = (at + 1) & (slots_.size() - 1);
        return at;
    }

    int bits_ = 4;
    int32_t size_ = 0;
    std::vector<Slot> slots_;
};

#ifdef HAS_DENSE_ROWS
constexpr int32_t LANES = 16;       // of int16
constexpr int32_t NARROW = 32;      // columns; so few are compared at once, however rare the token
constexpr int32_t COMMON = 64;      // a token is common if it fills more than 1/64 of b
constexpr int32_t LONGEST = 32'000; // what run lengths and numbers of tokens in int16 can hold

// Two bits for each lane whose run is longer than `size`.
__attribute__((target("avx2"))) inline uint32_t lanes_above(const int16_t* run, __m256i size) {
    const __m256i runs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(run));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi16(runs, size)));
}

// The longest block of rows [0, num_rows) and columns [0, width): `rows` are numbers of tokens, -1
// for none, and `columns` too, -2 in the padding up to whole vectors. run[j + 1] is the length of
// the common run that ends at this row and column j; it is zero on entry, and has one vector more.
__attribute__((target("avx2"))) Match longest_match_dense(const int32_t* rows, int32_t num_rows,
                                                          const int16_t* columns, int32_t width,
                                                          int16_t* run) {
    Match best{0, 0, 0};
    const int32_t last_vector = (width - 1) / LANES * LANES;
    __m256i best_size = _mm256_setzero_si256();
    for (int32_t i = 0; i < num_rows; ++i) {
        const __m256i token = _mm256_set1_epi16(static_cast<int16_t>(rows[i]));
        __m256i longer = _mm256_setzero_si256();
        // From the right: run[j] must still be of the row before when run[j + 1] is made of it.
        for (int32_t j = last_vector; j >= 0; j -= LANES) {
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns + j));
            const __m256i before = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(run + j));
            const __m256i equal = _mm256_cmpeq_epi16(b, token); // -1 where it holds
            const __m256i now = _mm256_and_si256(_mm256_sub_epi16(before, equal), equal);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(run + j + 1), now);
            longer = _mm256_or_si256(longer, _mm256_cmpgt_epi16(now, best_size));
        }
        if (_mm256_movemask_epi8(longer) == 0)
            continue;
        for (int32_t j = 0; j < width; j += LANES) {
            while (const uint32_t lanes = lanes_above(run + j + 1, best_size)) {
                const int32_t end = j + __builtin_ctz(lanes) / 2, size = run[end + 1];
                best = {i - size + 1, end - size + 1, size};
                best_size = _mm256_set1_epi16(static_cast<int16_t>(size));
            }
        }
    }
    return best;
}
#endif

class Matcher {
  public:
    Matcher(const int64_t* a, int32_t a_size, const int64_t* b, int32_t b_size, bool autojunk)
        : a_(a), b_(b), a_size_(a_size), b_size_(b_size), a_ids_(a_size), b_ids_(b_size),
          previous_(b_size), runs_(b_size + 1, 0) {
        number_tokens(autojunk);
    }

    // Total size of the matching blocks.
    int64_t num_matches() {
        int64_t total = 0;
        std::vector<Region> pending{{0, a_size_, 0, b_size_}};
        while (!pending.empty()) {
            const Region r = pending.back();
            pending.pop_back();
            const Match m = longest_match(r);
            if (m.size == 0)
                continue;
            total += m.size;
            if (r.a_begin < m.i && r.b_begin < m.j)
                pending.push_back({r.a_begin, m.i, r.b_begin, m.j});
            if (m.i + m.size < r.a_end && m.j + m.size < r.b_end)
                pending.push_back({m.i + m.size, r.a_end, m.j + m.size, r.b_end});
        }
        return total;
    }

  private:
    void number_tokens(bool autojunk) {
        Numbering numbering(b_size_);
        std::vector<int32_t> counts;
        last_.clear();
        for (int32_t j = 0; j < b_size_; ++j) {
            const int32_t id = b_ids_[j] = numbering.number(b_[j]);
            if (id == static_cast<int32_t>(last_.size())) {
                last_.push_back(-1);
                counts.push_back(0);
            }
            previous_[j] = last_[id];
            last_[id] = j;
            ++counts[id];
        }
        // autojunk: in a b of 200 or more, a token that fills over 1 % of it starts no match. It
        // can still extend one.
        const int32_t most = autojunk && b_size_ >= 200 ? b_size_ / 100 + 1 : b_size_;
        int64_t num_pairs = 0;
        for (int32_t i = 0; i < a_size_; ++i) {
            const int32_t id = numbering.find(a_[i]);
            a_ids_[i] = id >= 0 && counts[id] <= most ? id : -1;
            num_pairs += a_ids_[i] >= 0 ? counts[id] : 0;
        }
#ifdef HAS_DENSE_ROWS
        can_be_dense_ = __builtin_cpu_supports("avx2") && std::max(a_size_, b_size_) <= LONGEST;
        is_common_ = num_pairs > static_cast<int64_t>(a_size_) * b_size_ / COMMON;
#endif
    }

    Match longest_match(const Region& r) {
        Match best{0, 0, 0};
#ifdef HAS_DENSE_ROWS
        const int32_t width = r.b_end - r.b_begin;
        if (can_be_dense_ && width > 0 && (is_common_ || width <= NARROW)) {
            const size_t padded = static_cast<size_t>(width + LANES - 1) / LANES * LANES;
            columns_.assign(padded, -2);
            std::copy(b_ids_.begin() + r.b_begin, b_ids_.begin() + r.b_end, columns_.begin());
            dense_runs_.assign(padded + LANES, 0);
            best = longest_match_dense(a_ids_.data() + r.a_begin, r.a_end - r.a_begin,
                                       columns_.data(), width, dense_runs_.data());
            best.i += r.a_begin;
            best.j += r.b_begin;
        } else
#endif
            best = longest_match_sparse(r);
        extend(best, r);
        return best;
    }

    Match longest_match_sparse(const Region& r) {
        Match best{r.a_begin, r.b_begin, 0};
        // The last position of each token in the region. That of a token that is not in it is left
        // from elsewhere, and lies outside.
        for (int32_t j = r.b_begin; j < r.b_end; ++j)
            last_[b_ids_[j]] = j;
        // runs_[j + 1] is the length of the common run that ends at column j, with the number of
        // the row that wrote it above: only what the row before wrote counts. Rows are numbered
        // through all regions, with a gap between two.
        ++row_;
        for (int32_t i = r.a_begin; i < r.a_end; ++i) {
            const uint64_t row_before = row_++ << 32, row = row_ << 32;
            if (a_ids_[i] < 0)
                continue;
            const int32_t last = last_[a_ids_[i]];
            // Of several equally long blocks that end in this row the leftmost counts.
            int32_t enough = best.size + 1;
            // From the right: runs_[j] must still be of the row before when it is read.
            for (int32_t j = last < r.b_end ? last : -1; j >= r.b_begin; j = previous_[j]) {
                const uint64_t before = runs_[j] - row_before;
                const uint64_t size = before >> 32 == 0 ? before + 1 : 1;
                runs_[j + 1] = row | size;
                const int32_t length = static_cast<int32_t>(size);
                if (length >= enough) {
                    best = {i - length + 1, j - length + 1, length};
                    enough = length;
                }
            }
        }
        return best;
    }

    // Popular tokens are left out of the rows: they join here, even beside an empty match.
    void extend(Match& m, const Region& r) const {
        while (m.i > r.a_begin && m.j > r.b_begin && a_[m.i - 1] == b_[m.j - 1]) {
            --m.i;
            --m.j;
            ++m.size;
        }
        while (m.i + m.size < r.a_end && m.j + m.size < r.b_end &&
               a_[m.i + m.size] == b_[m.j + m.size])
            ++m.size;
    }

    const int64_t *a_, *b_;
    int32_t a_size_, b_size_;
    // Numbers of the tokens of b; of a too, -1 if b lacks the token or it is popular.
    std::vector<int32_t> a_ids_, b_ids_;
    std::vector<int32_t> previous_; // position before j of the same token in b, or -1
    std::vector<int32_t> last_;     // per token number
    std::vector<uint64_t> runs_;
    uint64_t row_ = 1;
#ifdef HAS_DENSE_ROWS
    bool can_be_dense_ = false, is_common_ = false;
    std::vector<int16_t> columns_, dense_runs_;
#endif
};

} // namespace

void sequence_similarity(const int64_t* a, const int64_t* a_offsets, const int64_t* b,
                         const int64_t* b_offsets, int64_t num_pairs, bool autojunk,
                         int num_threads, double* ratios) {
    std::vector<std::exception_ptr> errors(num_pairs);
    parallel_for(num_pairs, num_threads, [&](int64_t n) {
        try {
            const int64_t a_size = a_offsets[n + 1] - a_offsets[n];
            const int64_t b_size = b_offsets[n + 1] - b_offsets[n];
            Matcher matcher(a + a_offsets[n], static_cast<int32_t>(a_size), b + b_offsets[n],
                            static_cast<int32_t>(b_size), autojunk);
            const double num_matches = static_cast<double>(matcher.num_matches());
            const double total = static_cast<double>(a_size + b_size);
            ratios[n] = total > 0 ? 2.0 * num_matches / total : 1.0;
        } catch (...) {
            // An exception must not leave an OpenMP region.
            errors[n] = std::current_exception();
        }
    });
    for (const auto& error : errors)
        if (error)
            std::rethrow_exception(error);
}

} // namespace satori_fast
