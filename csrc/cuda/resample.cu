// A thread computes a cell, a rectangle of outputs, and loads the inputs that they share once, in words of 16 bytes:
// neighboring pixels of contiguous images, neighboring channels of channels-last ones. Which taps hit which input is
// known at compile time for the filters of NCSN++; every other one takes a thread for each output.
#include "cuda/resample.h"

#include "cuda/device.h"

namespace fastscore::cuda {
namespace {

constexpr int threads = 256, blocks = 4;  // of a multiprocessor at once: at most 64 registers a thread

FASTSCORE_HD constexpr int floor_div(int n, int d) {
  return n >= 0 ? n / d : -((d - 1 - n) / d);
}

// Lines and columns alike: the tap from input r to output p, counted from the start of a cell, if there is one.
template <int up_, int down_, int length_, int before_>
struct Filter {
  static constexpr int up = up_, down = down_, length = length_, before = before_;
  static constexpr int rows = 2;                // of a cell; a cell begins at input rows * down / up of its lines
  static constexpr int first = -(before / up);  // the first input that outputs depend on

  FASTSCORE_HD constexpr int tap(int r, int p) { return up * r - down * p + before; }
  FASTSCORE_HD constexpr bool hits(int r, int p) { return tap(r, p) >= 0 && tap(r, p) < length; }
  // The last one that `outputs` of them depend on.
  FASTSCORE_HD constexpr int last(int outputs) { return floor_div(down * (outputs - 1) + length - 1 - before, up); }
};

// Kept in registers where these suffice, else read where they are used.
template <class Real, int count, bool kept>
class Taps {
 public:
  __device__ __forceinline__ explicit Taps(const ResampleArgs& args)
      : from_(static_cast<const Real*>(args.taps) + (args.flip ? 0 : count - 1)), step_(args.flip ? 1 : -1) {
    if constexpr (kept) {
      FASTSCORE_UNROLL
      for (int k = 0; k < count; ++k) kept_[k] = read(k);
    }
  }
  __device__ __forceinline__ Real operator[](int k) const {
    if constexpr (kept)
      return kept_[k];
    else
      return read(k);
  }

 private:
  __device__ __forceinline__ Real read(int k) const { return from_[k * step_]; }

  const Real* from_;
  int step_;
  Real kept_[kept ? count : 1];
};
template <class T, class F>
using TapsOf = Taps<accumulator_t<T>, F::length * F::length, sizeof(T) == 4>;

// (B, C, H, W): cells of F::rows lines and F::up words. `out_words`: outputs are whole words, too.
template <class T, class F>
__device__ __forceinline__ void contiguous_cell(const ResampleArgs& args, std::int64_t index, std::int64_t lines,
                                                std::int64_t cells, bool out_words, const TapsOf<T, F>& taps) {
  using Real = accumulator_t<T>;
  constexpr int word = vector_length<T>, columns = F::up * word;
  constexpr int first_word = floor_div(F::first, word), words = floor_div(F::last(columns), word) - first_word + 1;
  std::int64_t place, plane, channel, sample;
  divide(index, cells, plane, place);
  const int cell = static_cast<int>(place);
  divide(plane, lines, plane, place);
  const int line = static_cast<int>(place);
  divide(plane, args.channels, sample, channel);
  const T* x = static_cast<const T*>(args.x) + sample * args.x_stride + channel * args.height * args.width;
  T* out = static_cast<T*>(args.out) + sample * args.out_stride + channel * args.out_height * args.out_width;

  Real value[F::rows][columns] = {};
  FASTSCORE_UNROLL
  for (int r = F::first; r <= F::last(F::rows); ++r) {
    const int i = line * (F::rows * F::down / F::up) + r;
    if (i < 0 || i >= args.height) continue;
    Vec<T> pixels[words] = {};
    FASTSCORE_UNROLL
    for (int k = 0; k < words; ++k) {
      const int j = cell * (word * F::down) + (first_word + k) * word;
      if (j >= 0 && j < args.width) pixels[k] = load_vec<word>(x + std::int64_t{i} * args.width + j);
    }
    FASTSCORE_UNROLL
    for (int p = 0; p < F::rows; ++p) {
      if (!F::hits(r, p)) continue;
      FASTSCORE_UNROLL
      for (int q = 0; q < columns; ++q) {
        FASTSCORE_UNROLL
        for (int s = F::first; s <= F::last(columns); ++s) {
          if (!F::hits(s, q)) continue;
          const int at = s - first_word * word;
          value[p][q] = multiply_add(taps[F::tap(r, p) * F::length + F::tap(s, q)],
                                     widen(pixels[at / word].value[at % word]), value[p][q]);
        }
      }
    }
  }

  FASTSCORE_UNROLL
  for (int p = 0; p < F::rows; ++p) {
    const int i = line * F::rows + p;
    if (i >= args.out_height) continue;
    FASTSCORE_UNROLL
    for (int k = 0; k < F::up; ++k) {
      const int j = cell * columns + k * word;
      T* to = out + std::int64_t{i} * args.out_width + j;
      Vec<T> vec;
      FASTSCORE_UNROLL
      for (int n = 0; n < word; ++n) vec.value[n] = narrow<T>(value[p][k * word + n]);
      if (out_words) {
        if (j < args.out_width) store_vec(to, vec);
      } else {
        FASTSCORE_UNROLL
        for (int n = 0; n < word; ++n)
          if (j + n < args.out_width) to[n] = vec.value[n];
      }
    }
  }
}

// (B, H, W, C): cells of F::rows lines and F::up columns, a word of channels.
template <class T, class F>
__device__ __forceinline__ void channels_last_cell(const ResampleArgs& args, std::int64_t index, std::int64_t lines,
                                                   std::int64_t cells, const TapsOf<T, F>& taps) {
  using Real = accumulator_t<T>;
  constexpr int word = vector_length<T>;
  const std::int64_t words = args.channels / word;
  std::int64_t place, channel, sample;
  divide(index, words, sample, channel);
  divide(sample, cells, sample, place);
  const int cell = static_cast<int>(place);
  divide(sample, lines, sample, place);
  const int line = static_cast<int>(place);
  const T* x = static_cast<const T*>(args.x) + sample * args.x_stride + channel * word;
  // Counted in words: of elements, the compiler loses sight of the alignment and stores them one by one.
  auto* out = reinterpret_cast<Vec<T>*>(static_cast<T*>(args.out) + sample * args.out_stride) + channel;

  Real value[F::rows][F::up][word] = {};
  FASTSCORE_UNROLL
  for (int r = F::first; r <= F::last(F::rows); ++r) {
    const int i = line * (F::rows * F::down / F::up) + r;
    if (i < 0 || i >= args.height) continue;
    FASTSCORE_UNROLL
    for (int s = F::first; s <= F::last(F::up); ++s) {
      const int j = cell * F::down + s;
      if (j < 0 || j >= args.width) continue;
      const Vec<T> vec = load_vec<word>(x + (std::int64_t{i} * args.width + j) * args.channels);
      FASTSCORE_UNROLL
      for (int p = 0; p < F::rows; ++p) {
        FASTSCORE_UNROLL
        for (int q = 0; q < F::up; ++q) {
          if (!F::hits(r, p) || !F::hits(s, q)) continue;
          const Real tap = taps[F::tap(r, p) * F::length + F::tap(s, q)];
          FASTSCORE_UNROLL
          for (int n = 0; n < word; ++n) value[p][q][n] = multiply_add(tap, widen(vec.value[n]), value[p][q][n]);
        }
      }
    }
  }

  FASTSCORE_UNROLL
  for (int p = 0; p < F::rows; ++p) {
    const int i = line * F::rows + p;
    if (i >= args.out_height) continue;
    FASTSCORE_UNROLL
    for (int q = 0; q < F::up; ++q) {
      const int j = cell * F::up + q;
      if (j >= args.out_width) continue;
      Vec<T> vec;
      FASTSCORE_UNROLL
      for (int n = 0; n < word; ++n) vec.value[n] = narrow<T>(value[p][q][n]);
      out[(std::int64_t{i} * args.out_width + j) * words] = vec;
    }
  }
}

template <class T, class F, bool channels_last>
__global__ void __launch_bounds__(threads, blocks)
    resample_cells_kernel(const __grid_constant__ ResampleArgs args, std::int64_t lines, std::int64_t cells,
                          std::int64_t count, bool out_words) {
  const TapsOf<T, F> taps(args);
  const std::int64_t stride = std::int64_t{gridDim.x} * threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x; i < count; i += stride) {
    if constexpr (channels_last)
      channels_last_cell<T, F>(args, i, lines, cells, taps);
    else
      contiguous_cell<T, F>(args, i, lines, cells, out_words, taps);
  }
}

// Any filter, any size: one output to a thread, in the order of the memory.
template <class T>
__global__ void __launch_bounds__(threads, blocks)
    resample_outputs_kernel(const __grid_constant__ ResampleArgs args, std::int64_t count) {
  using Real = accumulator_t<T>;
  const Real* taps = static_cast<const Real*>(args.taps);
  const std::int64_t stride = std::int64_t{gridDim.x} * threads;
  for (std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x; index < count; index += stride) {
    std::int64_t sample, channel, i, j, place;
    divide(index, args.channels * args.out_height * args.out_width, sample, place);
    T* out = static_cast<T*>(args.out) + sample * args.out_stride + place;
    if (args.channels_last) {
      divide(place, args.channels, place, channel);
      divide(place, args.out_width, i, j);
    } else {
      divide(place, args.out_width, place, j);
      divide(place, args.out_height, channel, i);
    }
    const std::int64_t pitch = args.channels_last ? args.channels : 1;
    const T* x = static_cast<const T*>(args.x) + sample * args.x_stride +
                 (args.channels_last ? channel : channel * args.height * args.width);
    Real value = 0;
    const std::int64_t row = args.down * i - args.before, column = args.down * j - args.before;
    // With zeros between the pixels, every second tap hits one.
    for (int a = args.up == 2 ? static_cast<int>(row & 1) : 0; a < args.length; a += args.up) {
      const std::int64_t r = (row + a) / args.up;
      if (row + a < 0 || r >= args.height) continue;
      for (int b = args.up == 2 ? static_cast<int>(column & 1) : 0; b < args.length; b += args.up) {
        const std::int64_t s = (column + b) / args.up;
        if (column + b < 0 || s >= args.width) continue;
        const int k = a * args.length + b;
        value = multiply_add(taps[args.flip ? k : args.length * args.length - 1 - k],
                             widen(x[(r * args.width + s) * pitch]), value);
      }
    }
    *out = narrow<T>(value);
  }
}

template <class T, class F>
cudaError_t launch_cells(const ResampleArgs& args, cudaStream_t stream) {
  constexpr int word = vector_length<T>;
  const std::int64_t width = args.channels_last ? F::up : F::up * word;  // of a cell
  const std::int64_t lines = (args.out_height + F::rows - 1) / F::rows, cells = (args.out_width + width - 1) / width;
  const std::int64_t count = args.batch * lines * cells * (args.channels_last ? args.channels / word : args.channels);
  unsigned grid;
  if (const cudaError_t error = looping_grid((count + threads - 1) / threads, grid)) return error;
  const auto kernel = args.channels_last ? resample_cells_kernel<T, F, true> : resample_cells_kernel<T, F, false>;
  const bool out_words = args.out_width % word == 0 && takes_vec<T>(args.out, args.out_stride);
  return launch(kernel, grid, threads, 0, stream, args, lines, cells, count, out_words);
}

// Whether inputs, and outputs of channels-last images, are whole words.
template <class T>
bool takes_words(const ResampleArgs& args) {
  constexpr int word = vector_length<T>;
  if (!takes_vec<T>(args.x, args.x_stride)) return false;
  if (!args.channels_last) return args.width % word == 0;
  return args.channels % word == 0 && takes_vec<T>(args.out, args.out_stride);
}

template <class T>
cudaError_t launch_for(const ResampleArgs& args, cudaStream_t stream) {
  if (args.length == 4 && takes_words<T>(args)) {
    // [1, 3, 3, 1] as NCSN++ pads it: upsampling, downsampling (each the gradient of the other), in front of a
    // convolution, and the gradient of that.
    if (args.up == 2 && args.before == 2) return launch_cells<T, Filter<2, 1, 4, 2>>(args, stream);
    if (args.down == 2 && args.before == 1) return launch_cells<T, Filter<1, 2, 4, 1>>(args, stream);
    if (args.up == args.down && args.before == 2) return launch_cells<T, Filter<1, 1, 4, 2>>(args, stream);
    if (args.up == args.down && args.before == 1) return launch_cells<T, Filter<1, 1, 4, 1>>(args, stream);
  }
  const std::int64_t count = args.batch * args.channels * args.out_height * args.out_width;
  unsigned grid;
  if (const cudaError_t error = looping_grid((count + threads - 1) / threads, grid)) return error;
  return launch(resample_outputs_kernel<T>, grid, threads, 0, stream, args, count);
}

}  // namespace

cudaError_t resample(const ResampleArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) { return launch_for<decltype(like)>(args, stream); });
}

}  // namespace fastscore::cuda
