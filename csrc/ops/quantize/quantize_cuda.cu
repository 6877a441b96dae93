/*
quantize, prepare and pack, CUDA. Meaning: quantize.h. Not yet run on a GPU: compiled,
held to its register and instruction gates (tests/test_cuda_gates.py), and run thread
by thread on the CPU (tests/ops/test_cuda_on_cpu.py).

Algorithm  1 pack_queries  a warp per query: normalised, weighted, rounded to float16,
                           with its error bound.
           2 sweep         tensor cores list the entries that may win
                           (search_tensor.cuh).
           3 decide        a warp per query: exact scores of the listed entries, in the
                           contract's order; only they decide. Queries whose list is
                           not complete are put on another list,
           4 sweep_plain   which float32 and float64 work off (search_plain.cuh): rows
                           with infinite bounds, ties by the dozen, no score above 0.
           A book that is not packed goes to sweep_plain with all queries.
Parts      Few queries leave the chip empty, so the book is cut into parts along
           blockIdx.y: as many as let the last wave end first.
Traffic    Reads the queries once a part, and the packed book once a 128 queries and
           part; N×K is never stored. Workspace: packed queries and some 40 candidates
           each.
Numerics   common/half_bound.h bounds the sweep by tensor cores, sweep_error the plain
           one. Every path gives the exact winner, the smallest entry among equals, so
           neither the order in which blocks run nor the path shows in the result.
Predicted  16384 queries, 32768 entries of width 40 on an H200: sweep 56–70 µs
           (search_tensor.cuh), the other three launches some 8 µs. 817: 10–12 µs, of
           which the sweep is 5. Nothing measured.
Device     No host synchronisation, no memory but the workspace, everything on the
           caller's stream: a call can be captured in a graph.
Needs      sm_80 for tensor cores, sm_90a for Hopper's; width ≤ 128 and k < 2³¹ to be
           packed; else any width. n < 2³¹ · 8.
*/
#include "ops/quantize/search_plain.cuh"
#include "ops/quantize/search_tensor.cuh"

namespace tokenflow {
namespace {

constexpr int kRowThreads = 256;  // eight rows, a warp for each

// --- one warp per query ---

__device__ inline int64_t launch_row() { return launch_item() / kWarp; }

// Σ x_d², in order, on every lane.
__device__ double row_squares(const float* x, int64_t width) {
  const int lane = threadIdx.x % kWarp;
  double sum = 0.0;
  for (int64_t d0 = 0; d0 < width; d0 += kWarp) {
    const float mine = d0 + lane < width ? x[d0 + lane] : 0.0f;
    const int count = static_cast<int>(min(static_cast<int64_t>(kWarp), width - d0));
    for (int i = 0; i < count; ++i) {
      const double v = __shfl_sync(kAllLanes, mine, i);
      sum += v * v;
    }
  }
  return sum;
}

// In no particular order: for bounds.
__device__ double warp_sum(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

__device__ RowBound bound_of(const Search& s, const HalfNorms& norms, int exponent,
                             int book_exponent) {
  const double book_norm = sqrt(*s.packed.norm) * power_of_two(book_exponent);
  const double offset =
      ldexp(entry_offset(s.book.limits[1], s.book.limits[2], s.queries.pixel_weight),
            exponent + book_exponent);
  const double error =
      half_sweep_error(norms, book_norm, sqrt(*s.packed.residual), offset, s.width);
  return {static_cast<float>(2.0 * error),
          static_cast<float>(power_of_two(exponent - book_exponent))};
}

// Rounds the packed row to float16; its lanes wrote it themselves.
__device__ void pack_half(const Search& s, int64_t n, double squares) {
  const int lane = threadIdx.x % kWarp, padded = 16 * s.steps;
  const float* row = s.query + n * s.width;
  const int book_exponent = half_exponent(sqrt(*s.packed.norm));
  const int exponent = query_exponent(sqrt(squares), book_exponent);
  const double scale = power_of_two(exponent);
  HalfNorms norms;
  for (int d = lane; d < padded; d += kWarp)
    s.half[n * padded + d] = to_half(d < s.width ? row[d] : 0.0f, scale, norms);
  norms.rounded = warp_sum(norms.rounded);
  norms.residual = warp_sum(norms.residual);
  if (lane == 0)
    s.bound[n] = s.queries.normalize && squares == 0.0
                     ? RowBound{kZeros, 0.0f}
                     : bound_of(s, norms, exponent, book_exponent);
}

__global__ void __launch_bounds__(kRowThreads) pack_queries(Search s) {
  const int64_t n = launch_row();
  if (n >= s.queries.n) return;
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) {
    if (n <= (s.queries.n - 1) / kQueries) s.arrived[n] = 0;
    if (n == 0) *s.again_count = 0;
    if (s.half) s.best[n] = s.found[n] = 0;
  }
  const int64_t ds = s.book.semantic_width, dp = s.book.pixel_width;
  const float* semantic = s.queries.semantic + n * ds;
  const float* pixel = s.queries.pixel + n * dp;
  float* row = s.query + n * s.width;
  const bool normalize = s.queries.normalize;
  const double semantic_norm = row_norm(row_squares(semantic, ds));
  const double pixel_norm = row_norm(row_squares(pixel, dp));
  double squares = 0.0;
  for (int64_t d = lane; d < s.width; d += kWarp) {
    float x;
    if (d < ds) {
      x = normalize ? normalized(semantic[d], semantic_norm) : semantic[d];
    } else {
      x = normalize ? normalized(pixel[d - ds], pixel_norm) : pixel[d - ds];
      x = s.queries.pixel_weight * x;
    }
    row[d] = x;
    squares += static_cast<double>(x) * static_cast<double>(x);
  }
  squares = warp_sum(squares);
  const bool finite = is_finite(squares) && is_finite(semantic_norm + pixel_norm);
  if (!finite) {  // zeros: a NaN would pass for a candidate
    for (int64_t d = lane; d < s.width; d += kWarp) row[d] = 0.0f;
    squares = 0.0;
  }
  if (s.half) pack_half(s, n, squares);
  if (lane == 0) {
    const double offset =
        entry_offset(s.book.limits[1], s.book.limits[2], s.queries.pixel_weight);
    s.error[n] =
        finite ? sweep_error(sqrt(squares) * sqrt(s.book.limits[0]) + offset, s.width)
               : -1.0;
    if (s.half && !finite) s.bound[n] = {kNotFinite, 0.0f};
  }
}

// A dot product of a zero row is zero with every entry.
__device__ int64_t first_finite(const PreparedBook& book) {
  for (int64_t k0 = 0; k0 < book.k; k0 += kWarp) {
    const int64_t k = k0 + threadIdx.x % kWarp;
    const bool finite = k < book.k && is_finite(book.squares[2 * k]);
    const unsigned mask = __ballot_sync(kAllLanes, finite);
    if (mask) return k0 + __ffs(static_cast<int>(mask)) - 1;
  }
  return -1;
}

// The best of a query's candidates by their exact scores.
__device__ int64_t best_candidate(const Search& s, int64_t n, unsigned found,
                                  float threshold) {
  unsigned long long best = 0;
  unsigned winner = ~0u;
  for (unsigned i = threadIdx.x % kWarp; i < found; i += kWarp) {
    const Candidate c = s.candidate[n * s.capacity + i];
    if (!(c.score >= threshold)) continue;
    const unsigned long long key = ordered(
        exact_dot(s.query + n * s.width, 1, s.book.rows + c.entry * s.width, s.width) -
        offset_of(s, c.entry));
    if (key > best || (key == best && c.entry < winner)) {
      best = key;
      winner = c.entry;
    }
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const unsigned long long key = __shfl_xor_sync(kAllLanes, best, offset);
    const unsigned entry = __shfl_xor_sync(kAllLanes, winner, offset);
    if (key > best || (key == best && entry < winner)) {
      best = key;
      winner = entry;
    }
  }
  return winner;
}

__global__ void __launch_bounds__(kRowThreads) decide(Search s, int64_t* indices) {
  const int64_t n = launch_row();
  if (n >= s.queries.n) return;
  const float slack = s.bound[n].slack;
  const unsigned found = s.found[n];
  const float threshold = unordered(s.best[n]) - slack;
  // The threshold was never lower than this while candidates were listed.
  const bool complete = slack >= 0.0f && found > 0 &&
                        found <= static_cast<unsigned>(s.capacity) &&
                        (!s.queries.normalize || threshold > 0.0f);
  int64_t index = -1;
  if (slack == kZeros)
    index = first_finite(s.book);
  else if (complete)
    index = best_candidate(s, n, found, threshold);
  if (threadIdx.x % kWarp != 0) return;
  if (complete || slack == kZeros || slack == kNotFinite)
    indices[n] = index;
  else
    s.again[atomicAdd(s.again_count, 1ull)] = n;
}

__global__ void scale_offsets(Search s) {
  const int64_t k = launch_item();
  if (k >= slabs_of(s.book.k) * kSlab) return;
  const int exponent = half_exponent(sqrt(*s.packed.norm));
  s.offsets[k] = k < s.book.k ? static_cast<float>(ldexp(offset_of(s, k), 2 * exponent))
                              : INFINITY;
}

// --- preparation ---

// Squares are never negative, so their bits order as integers.
__device__ void raise_limit(double* limit, double value) {
  atomicMax(reinterpret_cast<unsigned long long*>(limit),
            static_cast<unsigned long long>(__double_as_longlong(value)));
}

__global__ void prepare_entries(const float* semantic, const float* pixel, int64_t k,
                                int64_t ds, int64_t dp, bool normalize, float* rows,
                                double* squares, double* limits) {
  const int64_t i = launch_item();
  if (i >= k) return;
  if (normalize && i == 0) raise_limit(limits, (dp ? 2 : 1) * kUnitSquares);
  float* row = rows + i * (ds + dp);
  const double s = write_half(semantic + i * ds, ds, normalize, row);
  const double p = write_half(pixel + i * dp, dp, normalize, row + ds);
  if (!is_finite(s) || !is_finite(p)) {  // such an entry never wins
    for (int64_t d = 0; d < ds + dp; ++d) row[d] = 0.0f;
    squares[2 * i] = INFINITY;
    squares[2 * i + 1] = 0.0;
    return;
  }
  squares[2 * i] = normalize ? 0.0 : s;
  squares[2 * i + 1] = normalize ? 0.0 : p;
  if (normalize) return;
  raise_limit(limits, sum_of_squares(row, ds + dp));
  raise_limit(limits + 1, squares[2 * i]);
  raise_limit(limits + 2, squares[2 * i + 1]);
}

__global__ void largest_norm(const float* rows, int64_t k, int64_t width,
                             PackedBook packed) {
  const int64_t i = launch_item();
  if (i < k) raise_limit(packed.norm, sum_of_squares(rows + i * width, width));
}

__global__ void pack_entries(const float* rows, int64_t k, int64_t width,
                             PackedBook packed) {
  const int64_t i = launch_item();
  if (i >= slabs_of(k) * kSlab) return;
  const double scale = power_of_two(half_exponent(sqrt(*packed.norm)));
  Half* slab = packed.slabs + i / kSlab * packed.chunks * kSlab * 8;
  HalfNorms norms;
  for (int d = 0; d < 8 * packed.chunks; ++d)
    slab[(d / 8 * kSlab + i % kSlab) * 8 + d % 8] =
        to_half(i < k && d < width ? rows[i * width + d] : 0.0f, scale, norms);
  raise_limit(packed.residual, norms.residual);
}

// --- what runs where ---

enum class Path { plain, mma, wgmma };

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

Path path_for(const PreparedBook& book, int device) {
  if (book.packed_bytes == 0) return Path::plain;
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
#ifdef TOKENFLOW_CUDA_90A  // compiled for it: sm_90a alone has wgmma
  if (major == 9) return Path::wgmma;
#endif
  return major >= 8 ? Path::mma : Path::plain;
}

// Kernels are compiled for these; between them the next larger one runs.
int steps_for(int64_t width) {
  const int steps = static_cast<int>((width + 15) / 16);
  return steps == 5 ? 6 : steps == 7 ? 8 : steps;
}

// Waves of blocks times what a block takes, its start worth two slabs.
int parts_for(int64_t panels, int64_t slabs, int64_t slots) {
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t parts = 1; parts <= std::min<int64_t>(slabs, 256); ++parts) {
    const int64_t waves = (panels * parts + slots - 1) / slots;
    const int64_t time = waves * ((slabs + parts - 1) / parts + 2);
    if (time < least) {
      least = time;
      best = parts;
    }
  }
  return static_cast<int>(best);
}

int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

int64_t stage_bytes(const Search& s, Path path) {
  return path == Path::wgmma ? wgmma_stage_bytes(s.packed.chunks, !s.queries.normalize)
                             : mma_stage_bytes(s.packed.chunks);
}

Search plan(const Queries& queries, const PreparedBook& book, void* workspace,
            Path path, int device) {
  Search s{};
  s.queries = queries;
  s.book = book;
  s.width = book.semantic_width + book.pixel_width;
  const int64_t n = queries.n;
  const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
  Carver carver{static_cast<char*>(workspace)};
  s.query = carver.take<float>(n * s.width);
  s.error = carver.take<double>(n);
  s.again_count = carver.take<unsigned long long>(1);
  s.blocks = 2 * processors;
  s.arrived = carver.take<unsigned>((n + kQueries - 1) / kQueries);
  s.part_best = carver.take<double>(static_cast<int64_t>(s.blocks) * kQueries);
  s.part_index = carver.take<int64_t>(static_cast<int64_t>(s.blocks) * kQueries);
  if (path != Path::plain) {
    s.packed = packed_book(book.packed, s.width);
    s.steps = steps_for(s.width);
    s.parts = parts_for(panels_of(n), slabs_of(book.k),
                        (path == Path::wgmma ? 1 : 2) * processors);
    const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) -
                         static_cast<int64_t>(sizeof(Lists)) - 256;  // for barriers
    s.stages = path == Path::wgmma ? static_cast<int>(std::min<int64_t>(
                                         kMaxStages, room / stage_bytes(s, path)))
                                   : kMmaStages;
    s.capacity = 2 * s.parts + kList;
    s.half = carver.take<Half>(n * 16 * s.steps);
    s.bound = carver.take<RowBound>(n);
    s.offsets = carver.take<float>(slabs_of(book.k) * kSlab);
    s.best = carver.take<unsigned>(n);
    s.found = carver.take<unsigned>(n);
    s.candidate = carver.take<Candidate>(n * s.capacity);
    s.again = carver.take<int64_t>(n);
  }
  s.bytes = carver.used;
  return s;
}

using Sweep = void (*)(Search);

template <bool kOffsets>
Sweep sweep_for(Path path, int steps) {
  const bool hopper = path == Path::wgmma;
  switch (steps) {
    case 1:
      return hopper ? sweep_wgmma<1, kOffsets> : sweep_mma<1, kOffsets>;
    case 2:
      return hopper ? sweep_wgmma<2, kOffsets> : sweep_mma<2, kOffsets>;
    case 3:
      return hopper ? sweep_wgmma<3, kOffsets> : sweep_mma<3, kOffsets>;
    case 4:
      return hopper ? sweep_wgmma<4, kOffsets> : sweep_mma<4, kOffsets>;
    case 6:
      return hopper ? sweep_wgmma<6, kOffsets> : sweep_mma<6, kOffsets>;
    default:
      return hopper ? sweep_wgmma<8, kOffsets> : sweep_mma<8, kOffsets>;
  }
}

void sweep(const Search& s, Path path, cudaStream_t stream) {
  const bool offsets = !s.queries.normalize;
  if (offsets)
    scale_offsets<<<launch_blocks(slabs_of(s.book.k) * kSlab, 256), 256, 0, stream>>>(
        s);
  const Sweep kernel =
      offsets ? sweep_for<true>(path, s.steps) : sweep_for<false>(path, s.steps);
  const int64_t shared =
      s.stages * stage_bytes(s, path) + static_cast<int64_t>(sizeof(Lists));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared)),
             "quantize");
  const dim3 grid(static_cast<unsigned>(panels_of(s.queries.n)), s.parts);
  const int threads = path == Path::wgmma ? kWgmmaThreads : kMmaThreads;
  kernel<<<grid, threads, shared, stream>>>(s);
}

}  // namespace

void prepare_cuda(const float* semantic_book, const float* pixel_book, int64_t k,
                  int64_t semantic_width, int64_t pixel_width, bool normalize,
                  float* rows, double* squares, double* limits, int device,
                  void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemsetAsync(limits, 0, 3 * sizeof(double), s), "prepare");
  prepare_entries<<<launch_blocks(k, 128), 128, 0, s>>>(
      semantic_book, pixel_book, k, semantic_width, pixel_width, normalize, rows,
      squares, limits);
  check_cuda(cudaGetLastError(), "prepare");
}

int64_t pack_cuda_bytes(int64_t k, int64_t width) {
  if (width > kMaxPackedWidth || k > std::numeric_limits<int32_t>::max()) return 0;
  return kHeaderBytes + slabs_of(k) * kSlab * chunks_of(width) * 16;
}

void pack_cuda(const float* rows, int64_t k, int64_t width, void* packed, int device,
               void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemsetAsync(packed, 0, kHeaderBytes, s), "pack");
  const PackedBook book = packed_book(packed, width);
  largest_norm<<<launch_blocks(k, 128), 128, 0, s>>>(rows, k, width, book);
  pack_entries<<<launch_blocks(slabs_of(k) * kSlab, 128), 128, 0, s>>>(rows, k, width,
                                                                       book);
  check_cuda(cudaGetLastError(), "pack");
}

int64_t quantize_cuda_workspace(const Queries& queries, const PreparedBook& book,
                                int device) {
  return plan(queries, book, nullptr, path_for(book, device), device).bytes;
}

void quantize_cuda(const Queries& queries, const PreparedBook& book, int64_t* indices,
                   void* workspace, int device, void* stream) {
  if (queries.n == 0) return;
  const DeviceGuard guard(device);
  const auto stream_ = static_cast<cudaStream_t>(stream);
  const Path path = path_for(book, device);
  const Search s = plan(queries, book, workspace, path, device);
  const unsigned row_blocks = launch_blocks(queries.n, kRowThreads / kWarp);
  pack_queries<<<row_blocks, kRowThreads, 0, stream_>>>(s);
  int64_t plain_blocks = s.blocks;
  if (path == Path::plain) {
    plain_blocks = std::max(plain_blocks, (queries.n + kQueries - 1) / kQueries);
  } else {
    sweep(s, path, stream_);
    decide<<<row_blocks, kRowThreads, 0, stream_>>>(s, indices);
  }
  sweep_plain<<<static_cast<unsigned>(plain_blocks), kPlainThreads, 0, stream_>>>(
      s, s.again, s.again_count, indices);
  check_cuda(cudaGetLastError(), "quantize");
}

}  // namespace tokenflow
