// NCC on a GPU, displacement-major: the same sums as in _ncc_numba.py, one source for every device.
//
//   classify     may a chip take the plain formula, must it take the masked one, or has it too few pixels?
//   block_sums   image 1 times displaced image 2, summed over blocks: every chip of every size is made of these
//   moments, box_sums, normalise
//                mean and spread of the chip at every pixel, for the plain formula
//   peaks        one chip: its surface, the peak, the second peak, the statistics, the quadric
//
// Displacements are the last index of the block sums, so that neighbouring threads read neighbouring numbers. A row of
// displacements is padded to `pitch`, a multiple of four: one thread makes four of them from one load of image 1.
//
// Every sum has an order that is fixed by the chip alone, so any tiling gives the same bits on one device. Host code:
// _ncc_cupy.py. The file is plain enough to be compiled as C++ and run by ogive.testing.cuda as well.

// The classes of _ncc_numba.py.
#define CLEAN 0
#define MASKED 1
#define EMPTY 2
// Threads that share one chip in `peaks`; the host code launches as many.
#define THREADS 64

// Which image of each role makes which sum: a b, n, a, b, a a, b b. 0: image, 1: mask, 2: image squared.
__constant__ int ROLE_A[6] = {0, 1, 0, 1, 2, 1};
__constant__ int ROLE_B[6] = {0, 1, 1, 0, 1, 2};

extern __shared__ float memory[];

// Class of every chip, from its own pixels and its own search window. (y, x): first pixel of the first chip.
extern "C" __global__ void classify(
    const unsigned char* a_valid, const unsigned char* b_valid, int ld, int y, int x, int step, int chip, int radius,
    int min_pixels, int nx, unsigned char* kind)
{
    const int i = blockIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= nx) return;
    const unsigned char* a = a_valid + (size_t)(y + i * step) * ld + x + j * step;
    int pixels = 0;
    for (int v = 0; v < chip; ++v)
        for (int u = 0; u < chip; ++u) pixels += a[(size_t)v * ld + u] != 0;
    bool whole = pixels == chip * chip;
    const unsigned char* b = b_valid + (size_t)(y + i * step - radius) * ld + x + j * step - radius;
    for (int v = 0; whole && v < chip + 2 * radius; ++v)
        for (int u = 0; u < chip + 2 * radius; ++u) whole = whole && b[(size_t)v * ld + u] != 0;
    kind[i * nx + j] = whole ? CLEAN : pixels < min_pixels ? EMPTY : MASKED;
}

__device__ float role_value(const float* image, const unsigned char* valid, int role, size_t p)
{
    if (role == 1) return valid[p] ? 1.0f : 0.0f;
    return role == 2 ? image[p] * image[p] : image[p];
}

// Sums over blocks of `width` x `width` pixels, sums[role][block row][block][displacement].
//
// A thread block: `across` blocks of one row, one role, one row of displacements (oy); a thread: one block, four
// displacements. `rows` rows of pixels of both images lie in shared memory at a time. (y, x): first pixel of block 0.
extern "C" __global__ void block_sums(
    const float* a, const unsigned char* a_valid, const float* b, const unsigned char* b_valid, int ld, int y, int x,
    int radius, int pitch, int width, int across, int rows, int columns, float* sums)
{
    const int size = 2 * radius + 1, groups = pitch / 4;
    const int oy = (int)blockIdx.z % size, role = (int)blockIdx.z / size;
    const int t = (int)threadIdx.x / groups, g = (int)threadIdx.x % groups;
    const int span_a = across * width, span_b = span_a + pitch;
    float* tile_a = memory;
    float* tile_b = memory + rows * span_a;
    x += (int)blockIdx.x * span_a;
    y += (int)blockIdx.y * width;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int start = 0; start < width; start += rows) {
        const int n = width - start < rows ? width - start : rows;
        __syncthreads();
        for (int k = threadIdx.x; k < n * span_a; k += blockDim.x) {
            const int v = start + k / span_a, column = x + k % span_a;
            // Columns beyond the image belong to padding alone, to blocks or displacements that nobody reads.
            tile_a[k] = column < ld ? role_value(a, a_valid, ROLE_A[role], (size_t)(y + v) * ld + column) : 0.0f;
        }
        for (int k = threadIdx.x; k < n * span_b; k += blockDim.x) {
            const int v = start + k / span_b + oy - radius, column = x + k % span_b - radius;
            tile_b[k] = column < ld ? role_value(b, b_valid, ROLE_B[role], (size_t)(y + v) * ld + column) : 0.0f;
        }
        __syncthreads();
        for (int v = 0; v < n; ++v) {
            const float* pa = tile_a + v * span_a + t * width;
            const float* pb = tile_b + v * span_b + t * width + 4 * g;
            float4 row = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float b0 = pb[0], b1 = pb[1], b2 = pb[2];
            for (int u = 0; u < width; ++u) {
                const float value = pa[u], b3 = pb[u + 3];
                row.x += value * b0;
                row.y += value * b1;
                row.z += value * b2;
                row.w += value * b3;
                b0 = b1;
                b1 = b2;
                b2 = b3;
            }
            sum.x += row.x;
            sum.y += row.y;
            sum.z += row.z;
            sum.w += row.w;
        }
    }
    const int column = (int)blockIdx.x * across + t;
    if (column >= columns) return;
    const size_t block = ((size_t)role * gridDim.y + blockIdx.y) * columns + column;
    *(float4*)(sums + (block * size + oy) * pitch + 4 * g) = sum;
}

// Sums of n neighbours along the rows, and of their squares, of the h x w pixels from (y, x); 0 beyond the last whole.
extern "C" __global__ void moments(const float* image, int ld, int y, int x, int w, int pixels, int n, double2* out)
{
    const int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= pixels) return;
    const float* row = image + (size_t)(y + p / w) * ld + x + p % w;
    double2 sum = make_double2(0.0, 0.0);
    for (int k = 0; k < n && p % w + n <= w; ++k) {
        const double value = row[k];
        sum.x += value;
        sum.y += value * value;
    }
    out[p] = sum;
}

// Sums of n numbers that lie `spacing` apart; 0 where they would leave the array.
extern "C" __global__ void box_sums(const double2* in, int pixels, int n, int spacing, double2* out)
{
    const int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= pixels) return;
    double2 sum = make_double2(0.0, 0.0);
    for (int k = 0; k < n && p + (n - 1) * spacing < pixels; ++k) {
        sum.x += in[p + k * spacing].x;
        sum.y += in[p + k * spacing].y;
    }
    out[p] = sum;
}

// (mean * sqrt(n), 1 / sqrt(sum of squared deviations)) from the sums over n pixels; (.., 0) where flat.
extern "C" __global__ void normalise(const double2* sums, int pixels, int n, float2* table)
{
    const int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= pixels) return;
    const double s = sums[p].x, q = sums[p].y, variance = q - s * s / n;
    // A variance at the level of rounding is none.
    table[p] = make_float2((float)(s / sqrt((double)n)), variance > 1e-12 * q ? (float)(1.0 / sqrt(variance)) : 0.0f);
}

// Sum over the blocks x blocks blocks of a chip at one displacement; `depth` numbers lie between neighbouring blocks.
__device__ float chip_sum(const float* sums, int blocks, int columns, int depth)
{
    float total = 0.0f;
    for (int v = 0; v < blocks; ++v) {
        float row = 0.0f;
        for (int u = 0; u < blocks; ++u) row += sums[((size_t)v * columns + u) * depth];
        total += row;
    }
    return total;
}

// Correlation over the pixels that are valid in both images, from six sums; -2 where they are too few.
__device__ float masked_correlation(
    const float* sums, size_t role, int blocks, int columns, int depth, int min_pixels)
{
    const double n = chip_sum(sums + role, blocks, columns, depth);
    if (n < min_pixels) return -2.0f;
    const double ab = chip_sum(sums, blocks, columns, depth);
    const double sa = chip_sum(sums + 2 * role, blocks, columns, depth);
    const double sb = chip_sum(sums + 3 * role, blocks, columns, depth);
    const double qa = chip_sum(sums + 4 * role, blocks, columns, depth);
    const double qb = chip_sum(sums + 5 * role, blocks, columns, depth);
    const double va = qa - sa * sa / n, vb = qb - sb * sb / n;
    if (va <= 1e-6 * qa || vb <= 1e-6 * qb) return 0.0f;
    return (float)((ab - sa * sb / n) / sqrt(va * vb));
}

// Maximum of the least-squares quadric through the logarithms of the 3 x 3 values round a peak; false where it has none within 1 px.
__device__ bool quadric(const float* r, int row, double* dy, double* dx)
{
    double gx = 0.0, gy = 0.0, hxx = 0.0, hyy = 0.0, hxy = 0.0;
    for (int j = -1; j <= 1; ++j) {
        for (int i = -1; i <= 1; ++i) {
            const double value = log(fmax((double)r[j * row + i], 0.1));
            gx += i * value;
            gy += j * value;
            hxy += i * j * value;
            hxx += (i * i - 2.0 / 3.0) * value;
            hyy += (j * j - 2.0 / 3.0) * value;
        }
    }
    gx /= 6.0;
    gy /= 6.0;
    hxy /= 4.0;
    const double determinant = hxx * hyy - hxy * hxy;
    if (!(hxx < 0.0 && determinant > 0.0)) return false;
    *dx = -(hyy * gx - hxy * gy) / determinant;
    *dy = -(hxx * gy - hxy * gx) / determinant;
    return fabs(*dx) <= 1.0 && fabs(*dy) <= 1.0;
}

// One chip to a thread block. out[0 ... 7] = dy, dx, corr, second peak, mean |r|, rim, refined, share searched.
//
// `lead`: blocks between the largest chip's first block and this one's, along both axes; `stride`: blocks from chip to
// chip; (i0, j0): the tile's first chip among the ny x nx of the window. The surface is kept in shared memory, or in
// `apart` where it does not fit. Tables: of image 1 from the first chip, of image 2 from `radius` before it.
extern "C" __global__ void peaks(
    const float* sums, int rows, int columns, int lead, int blocks, int stride, int radius, int pitch,
    const float2* a_table, int a_ld, const float2* b_table, int b_ld, int step, const unsigned char* kind,
    int min_pixels, float* apart, int fits, int i0, int j0, int ny, int nx, float* out)
{
    __shared__ float best[THREADS], total[THREADS], second[THREADS];
    __shared__ int place[THREADS], count[THREADS];
    const int k = threadIdx.x, i = blockIdx.y, j = blockIdx.x;
    const int size = 2 * radius + 1, depth = size * pitch;
    const size_t point = (size_t)(i0 + i) * nx + j0 + j, role = (size_t)rows * columns * depth;
    const float* chip = sums + ((size_t)(lead + i * stride) * columns + lead + j * stride) * depth;
    const float2 a = a_table[(size_t)i * step * a_ld + j * step];
    const int clean = kind[point] == CLEAN, empty = kind[point] == EMPTY;
    float* surface = fits ? memory : apart + ((size_t)i * gridDim.x + j) * size * size;

    best[k] = -3.0f;
    total[k] = 0.0f;
    place[k] = 0;
    count[k] = 0;
    for (int d = k; d < size * size; d += THREADS) {
        const int oy = d / size, ox = d % size;
        float r = -2.0f;
        if (clean) {
            const float2 b = b_table[(size_t)(i * step + oy) * b_ld + j * step + ox];
            r = (chip_sum(chip + oy * pitch + ox, blocks, columns, depth) - a.x * b.x) * (a.y * b.y);
        } else if (!empty) {
            r = masked_correlation(chip + oy * pitch + ox, role, blocks, columns, depth, min_pixels);
        }
        surface[d] = r;
        if (r > -1.5f) {
            total[k] += fabsf(r);
            count[k] += 1;
        }
        if (r > best[k]) {
            best[k] = r;
            place[k] = d;
        }
    }
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (k >= half) continue;
        total[k] += total[k + half];
        count[k] += count[k + half];
        // Of equal peaks the first in row order.
        if (best[k + half] > best[k] || (best[k + half] == best[k] && place[k + half] < place[k])) {
            best[k] = best[k + half];
            place[k] = place[k + half];
        }
    }
    __syncthreads();
    const int top = place[0], py = top / size, px = top % size;
    second[k] = -2.0f;
    for (int d = k; d < size * size; d += THREADS) {
        const int oy = d / size - py, ox = d % size - px;
        if (oy < -2 || oy > 2 || ox < -2 || ox > 2) second[k] = fmaxf(second[k], surface[d]);
    }
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (k < half) second[k] = fmaxf(second[k], second[k + half]);
    }
    if (k > 0) return;

    // Beside displacements that the masks forbid is a rim as well: of what could be searched.
    bool rim = py == 0 || px == 0 || py == size - 1 || px == size - 1;
    for (int n = 0; n < 9 && !rim; ++n) rim = surface[top + (n / 3 - 1) * size + n % 3 - 1] <= -1.5f;
    double dy = 0.0, dx = 0.0;
    const bool refined = !rim && quadric(surface + top, size, &dy, &dx);
    const size_t plane = (size_t)ny * nx;
    out[point] = (float)(py - radius + (refined ? dy : 0.0));
    out[point + plane] = (float)(px - radius + (refined ? dx : 0.0));
    out[point + 2 * plane] = best[0];
    out[point + 3 * plane] = second[0];
    out[point + 4 * plane] = total[0] / (count[0] > 0 ? count[0] : 1);
    out[point + 5 * plane] = rim;
    out[point + 6 * plane] = refined;
    out[point + 7 * plane] = (float)count[0] / (size * size);
}
