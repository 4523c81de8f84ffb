// Shares out the work; the kernels are in the other files of this name.
#include "cuda/group_norm_silu.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "cuda/device.h"
#include "cuda/group_norm_silu_plan.h"

namespace fastscore::cuda {
namespace group_norm {
namespace {

constexpr std::int64_t few_threads = 256;  // of a block with a whole column, where each can hold more runs
constexpr std::int64_t row_bytes = 128;    // channels last: what the threads side by side should read, at least
constexpr std::int64_t sector_bytes = 32;  // what memory is read in
constexpr std::int64_t whole_lanes = 64, part_lanes = 32;  // threads side by side, at most
constexpr std::int64_t most_blocks = 128;                  // of a column: each of them reads what all know

std::int64_t ceil_divide(std::int64_t n, std::int64_t d) {
  return (n + d - 1) / d;
}

int element_size(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// The runs that a thread holds where `most` is what it can hold, and `lines` lines of `runs` runs are shared out: few
// enough that a block has some threads.
std::int64_t runs_of_thread(std::int64_t lines, std::int64_t runs, std::int64_t most) {
  std::int64_t held = 1;
  while (held < most && lines * ceil_divide(runs, held) > few_threads) ++held;
  return held;
}

void plan_contiguous(const Args& args, std::int64_t length, Plan& plan) {
  const std::int64_t d = args.channels / args.groups, runs = ceil_divide(args.pixels, length);
  const std::int64_t depth = runs_per_thread(args.kind);
  std::int64_t lanes, channels, runs_of_tile;
  plan.whole = d * ceil_divide(runs, depth) <= most_threads(element_size(args.dtype));
  if (plan.whole) {
    lanes = ceil_divide(runs, runs_of_thread(d, runs, depth));
    channels = d;
    runs_of_tile = runs;
  } else {
    const std::int64_t parts = ceil_divide(runs, part_threads * depth);
    lanes = ceil_divide(runs, parts * depth);
    channels = std::min(d, part_threads / lanes);
    runs_of_tile = lanes * depth;
  }
  plan.inner = static_cast<int>(lanes);
  plan.outer = plan.tile_channels = static_cast<int>(channels);
  plan.slots = plan.outer;
  plan.stride = static_cast<int>(lanes * length);
  plan.tile_pixels = static_cast<int>(runs_of_tile * length);
  plan.column = static_cast<int>(d);
}

void plan_channels_last(const Args& args, std::int64_t length, Plan& plan) {
  const std::int64_t d = args.channels / args.groups, size = element_size(args.dtype);
  const std::int64_t depth = runs_per_thread(args.kind);
  // The least width at which groups, and words, are whole.
  const std::int64_t unit = plan.vectors ? std::lcm(d, length) : d;
  const auto lanes_of = [&](std::int64_t width) { return ceil_divide(width, length); };
  const auto width_of = [&](std::int64_t lanes) {
    return std::min(std::max<std::int64_t>(lanes * length / unit, 1) * unit, args.channels);
  };
  const auto fits = [&](std::int64_t width) {
    const std::int64_t lanes = lanes_of(width);
    return lanes <= whole_lanes && lanes * ceil_divide(args.pixels, depth) <= most_threads(element_size(args.dtype)) &&
           (width * size >= sector_bytes || width == args.channels);
  };
  const std::int64_t row_lanes = row_bytes / (length * size);
  std::int64_t width = width_of(std::max(row_lanes, std::min(few_threads / args.pixels, whole_lanes)));
  while (!fits(width) && width > unit) width = width_of(lanes_of(width) / 2);
  plan.whole = fits(width);
  std::int64_t channels = width, rows;
  if (plan.whole) {
    rows = ceil_divide(args.pixels, runs_of_thread(lanes_of(width), args.pixels, depth));
    plan.tile_pixels = static_cast<int>(args.pixels);
  } else {
    width = channels = width_of(row_lanes);
    // A group too wide for a block is cut into even pieces of whole words.
    if (const std::int64_t pieces = ceil_divide(lanes_of(width), part_lanes); pieces > 1)
      channels = ceil_divide(lanes_of(width), pieces) * length;
    const std::int64_t most = part_threads / lanes_of(channels) * depth;
    rows = ceil_divide(args.pixels, ceil_divide(args.pixels, most) * depth);
    plan.tile_pixels = static_cast<int>(rows * depth);
  }
  plan.inner = plan.slots = static_cast<int>(lanes_of(channels));
  plan.outer = static_cast<int>(rows);
  plan.stride = plan.outer;
  plan.tile_channels = static_cast<int>(channels);
  plan.column = static_cast<int>(width);
}

}  // namespace

Plan make_plan(const Args& args) {
  const std::int64_t words = 16 / element_size(args.dtype), d = args.channels / args.groups;
  const auto aligned = [&](const void* data, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % words == 0;
  };
  Plan plan;
  plan.group_channels = static_cast<int>(d);
  plan.vectors = (args.channels_last ? args.channels : args.pixels) % words == 0 &&
                 aligned(args.x.data, args.x.stride) && aligned(args.other.data, args.other.stride) &&
                 aligned(args.out, args.channels * args.pixels);
  if (args.channels_last && d % words != 0 && std::lcm(d, words) > part_lanes * words) plan.vectors = false;
  const std::int64_t length = plan.vectors ? words : 1;
  args.channels_last ? plan_channels_last(args, length, plan) : plan_contiguous(args, length, plan);

  plan.threads = static_cast<int>(ceil_divide(std::int64_t{plan.outer} * plan.inner, warp_size) * warp_size);
  plan.peers = plan.inner * plan.outer / static_cast<int>(plan.slots);
  plan.column_groups = static_cast<int>(std::max<std::int64_t>(plan.tile_channels / d, 1));
  plan.columns = static_cast<int>(ceil_divide(args.channels, plan.column));
  plan.parts = static_cast<int>(ceil_divide(args.pixels, plan.tile_pixels));
  plan.tiles = static_cast<int>(ceil_divide(plan.column, plan.tile_channels) * plan.parts);
  plan.repeat = static_cast<int>(ceil_divide(plan.tiles, most_blocks));
  plan.blocks = static_cast<int>(ceil_divide(plan.tiles, plan.repeat));
  if (!plan.whole) plan.statistics = args.batch * args.groups * known_count * plan.blocks;
  const auto& to = args.gradients;
  const bool gradients =
      to.weight != nullptr || to.bias != nullptr || to.add != nullptr || to.scale != nullptr || to.shift != nullptr;
  if (args.kind == Kind::backward && gradients) {
    plan.means = args.batch * args.groups * 2;
    plan.sums = args.batch * plan.parts * 3 * args.channels;
  }
  return plan;
}

// Samples of one pixel are the same in both layouts, and words run along the channels.
Args with_layout(Args args) {
  args.channels_last |= args.pixels == 1;
  return args;
}

}  // namespace group_norm

std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args) {
  if (args.batch * args.channels * args.pixels == 0) return 0;
  const group_norm::Plan plan = group_norm::make_plan(group_norm::with_layout(args));
  const std::int64_t elements = plan.statistics + plan.means + plan.sums;
  return static_cast<std::size_t>(elements) * (args.dtype == Dtype::f64 ? 8 : 4);
}

cudaError_t group_norm_silu(const GroupNormSiluArgs& args, cudaStream_t stream) {
  if (args.batch * args.channels * args.pixels == 0) return cudaSuccess;
  const group_norm::Args use = group_norm::with_layout(args);
  const group_norm::Plan plan = group_norm::make_plan(use);
  // Offsets in a tile, and blocks, are counted in 32 bits.
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  if (args.batch * plan.columns > most || (use.channels_last && plan.tile_pixels * args.channels > most))
    return cudaErrorInvalidConfiguration;
  switch (use.kind) {
    case GroupNormSiluKind::forward:
      return group_norm::forward(use, plan, stream);
    case GroupNormSiluKind::backward:
      return group_norm::backward(use, plan, stream);
    case GroupNormSiluKind::jvp:
      return group_norm::jvp(use, plan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastscore::cuda
