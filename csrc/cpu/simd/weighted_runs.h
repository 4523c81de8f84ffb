// Weighted sums of runs of memory, written to a run, to the even and the odd elements of one apart, or to them
// together:
//
//   Runs<T> runs;
//   runs.add(from, weight);                                        up to `most_runs` times
//   with_sum(runs, [&](const auto& sum) { write_run(sum, 0, n, to); });
#pragma once

#include "cpu/simd/tails.h"

namespace fastscore::FASTSCORE_ISA {

inline constexpr int most_runs = 64;

FASTSCORE_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
FASTSCORE_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}

// f(i, vectors, part) for the vectors of n elements, vectors.count of them at a time. The last one overlaps those
// before it, since a part of a vector takes longer than a whole one; `part` is as in each_vector.
template <int n>
struct Vectors {
  static constexpr int count = n;
};
template <class T, class F>
FASTSCORE_INLINE void overlapping(std::int64_t n, F&& f) {
  constexpr int lanes = Acc<T>::lanes, several = 4;
  std::int64_t i = 0;
  for (; i + several * lanes <= n; i += several * lanes) f(i, Vectors<several>{}, Whole{});
  for (; i + lanes <= n; i += lanes) f(i, Vectors<1>{}, Whole{});
  if (i == n) return;
  if (n > lanes)
    f(n - lanes, Vectors<1>{}, Whole{});
  else
    f(0, Vectors<1>{}, First{n});
}

// The runs of a sum and their weights.
template <class T>
struct Runs {
  const T* from[most_runs];
  typename Acc<T>::scalar weight[most_runs];
  int count = 0;

  void add(const T* run, typename Acc<T>::scalar times) {
    from[count] = run;
    weight[count++] = times;
  }
};

// Their sum; `fixed`: how many there are, 0 if that is not known before. Copies, because stores may alias anything.
template <class T, int fixed>
class Sum {
 public:
  using Vec = typename Acc<T>::vec;

  [[gnu::always_inline]] explicit Sum(const Runs<T>& runs) : runs_(runs) {
    for (int k = 0; k < fixed; ++k) {
      from_[k] = runs.from[k];
      weight_[k] = splat(runs.weight[k]);
    }
  }

  template <int vectors, class Part>
  [[gnu::always_inline]] void at(std::int64_t i, Vec (&sum)[vectors], Part part) const {
    for (Vec& s : sum) s = Vec{};
    if constexpr (fixed != 0) {
#pragma GCC unroll 8
      for (int k = 0; k < fixed; ++k) add(sum, from_[k] + i, weight_[k], part);
    } else {
      for (int k = 0; k < runs_.count; ++k) add(sum, runs_.from[k] + i, splat(runs_.weight[k]), part);
    }
  }

 private:
  template <int vectors, class Part>
  [[gnu::always_inline]] static void add(Vec (&sum)[vectors], const T* from, Vec weight, Part part) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[v] = fma(weight, load(from + v * Acc<T>::lanes, part), sum[v]);
  }

  const Runs<T>& runs_;
  const T* from_[fixed + 1];
  Vec weight_[fixed + 1];
};

// f(Sum) with the counts of the usual filters known to the compiler.
template <class T, class F>
FASTSCORE_INLINE void with_sum(const Runs<T>& runs, F&& f) {
  if (runs.count == 2)
    f(Sum<T, 2>(runs));
  else if (runs.count == 4)
    f(Sum<T, 4>(runs));
  else
    f(Sum<T, 0>(runs));
}

// a0 b0 a1 b1 ..., and a0 a2 ... b0 b2 ..., a1 a3 ... b1 b3 ...
template <class V>
FASTSCORE_INLINE void zip(V a, V b, V& low, V& high) {
  constexpr int n = sizeof(V) / sizeof a[0];
  decltype(a < a) first, second;
  for (int i = 0; i < n; ++i) {
    first[i] = i / 2 + i % 2 * n;
    second[i] = n / 2 + i / 2 + i % 2 * n;
  }
  low = __builtin_shuffle(a, b, first);
  high = __builtin_shuffle(a, b, second);
}
template <class V>
FASTSCORE_INLINE void unzip(V a, V b, V& even, V& odd) {
  constexpr int n = sizeof(V) / sizeof a[0];
  decltype(a < a) first, second;
  for (int i = 0; i < n; ++i) {
    first[i] = 2 * i;
    second[i] = 2 * i + 1;
  }
  even = __builtin_shuffle(a, b, first);
  odd = __builtin_shuffle(a, b, second);
}

// Even elements to `even`, odd ones to `odd`, which have room for a vector more.
template <class T>
FASTSCORE_INLINE void write_apart(const Runs<T>& runs, std::int64_t n, typename Acc<T>::scalar* even,
                                  typename Acc<T>::scalar* odd) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes;
  with_sum(runs, [&](const auto& sum) __attribute__((always_inline)) {
    std::int64_t i = 0;
    Vec s[2], e, o;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
      sum.at(i, s, Whole{});
      unzip(s[0], s[1], e, o);
      store(even + i / 2, e);
      store(odd + i / 2, o);
    }
    if (i == n) return;
    if (i > 0) {
      i = n - 2 * lanes;
      sum.at(i, s, Whole{});
      unzip(s[0], s[1], e, o);
      store((i % 2 == 0 ? even : odd) + i / 2, e);
      store(i % 2 == 0 ? odd + i / 2 : even + i / 2 + 1, o);
      return;
    }
    Vec part[1];
    if (n >= lanes)
      sum.at(0, part, Whole{});
    else
      sum.at(0, part, First{n});
    s[0] = part[0];
    s[1] = Vec{};
    if (n > lanes) {
      sum.at(lanes, part, First{n - lanes});
      s[1] = part[0];
    }
    unzip(s[0], s[1], e, o);
    store(even, e);
    store(odd, o);
  });
}

// f(even, odd) likewise.
template <class T, class F>
FASTSCORE_INLINE void with_sums(const Runs<T>& even, const Runs<T>& odd, F&& f) {
  if (even.count == 2 && odd.count == 2)
    f(Sum<T, 2>(even), Sum<T, 2>(odd));
  else
    f(Sum<T, 0>(even), Sum<T, 0>(odd));
}

template <class T, class S>
FASTSCORE_INLINE void write_run(const S& sum, std::int64_t from, std::int64_t n, T* to) {
  overlapping<T>(n, [&](std::int64_t i, auto vectors, auto part) __attribute__((always_inline)) {
    typename Acc<T>::vec s[vectors.count];
    sum.at(from + i, s, part);
    for (int v = 0; v < vectors.count; ++v) store(to + i + v * Acc<T>::lanes, s[v], part);
  });
}

// One sum to the even elements of n, one to the odd.
template <class T, class S>
FASTSCORE_INLINE void write_together(const S& even, const S& odd, std::int64_t from, std::int64_t n, T* to) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes;
  overlapping<T>(n / 2, [&](std::int64_t i, auto vectors, auto part) __attribute__((always_inline)) {
    Vec e[vectors.count], o[vectors.count];
    even.at(from + i, e, part);
    odd.at(from + i, o, part);
    for (int v = 0; v < vectors.count; ++v) {
      Vec low, high;
      zip(e[v], o[v], low, high);
      T* at = to + 2 * (i + v * lanes);
      if constexpr (requires { part.n; }) {
        store(at, low, First{smaller(2 * part.n, lanes)});
        store(at + lanes, high, First{larger(2 * part.n - lanes, 0)});
      } else {
        store(at, low);
        store(at + lanes, high);
      }
    }
  });
  if (n % 2 != 0) {
    Vec last[1];
    even.at(from + n / 2, last, First{1});
    store_n(to + n - 1, last[0], 1);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
