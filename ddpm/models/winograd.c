/* The transforms of winograd.py, of both axes at once and in one pass over memory.

Images are (count, height, width, channels). They are cut into tiles (count, rows, columns, 36,
channels), of six numbers on each axis, and made of planes (36, count, rows, columns, channels), as
matrix products give them. All are contiguous, in float32. The number of channels is a multiple of
16. Addresses a power of two apart share few places in the cache, so that each of its lines is read
and written as a whole.

Function pointers stand where C++ has templates: everything is inlined. */

#include "vectors.h"

#define SERIAL 16384 /* values of a plane: with fewer, waking another thread takes longer */

typedef struct {
    long count, rows, columns, channels; /* images, their tiles on both axes, channels */
} Shape;

/* One axis: numbers that lie s vectors apart -> numbers that lie t vectors apart. */
typedef void Line(const vec *from, long s, vec *to, long t);

INLINE void input(const vec *d, long s, vec *to, long t) { /* B^T: 6 -> 6 */
    vec even = d[4 * s] - 4 * d[2 * s], odd = d[3 * s] - 4 * d[s];
    vec even_2 = d[4 * s] - d[2 * s], odd_2 = 2 * (d[3 * s] - d[s]);
    to[0] = d[4 * s] - 5 * d[2 * s] + 4 * d[0];
    to[t] = even + odd;
    to[2 * t] = even - odd;
    to[3 * t] = even_2 + odd_2;
    to[4 * t] = even_2 - odd_2;
    to[5 * t] = d[5 * s] - 5 * d[3 * s] + 4 * d[s];
}

INLINE void kernel(const vec *g, long s, vec *to, long t) { /* G: 3 -> 6 */
    vec even = (g[0] + g[2 * s]) * (-1 / 6.f), odd = g[s] * (-1 / 6.f);
    vec even_2 = (g[0] + 4 * g[2 * s]) * (1 / 24.f), odd_2 = g[s] * (1 / 12.f);
    to[0] = g[0] * (1 / 4.f);
    to[t] = even + odd;
    to[2 * t] = even - odd;
    to[3 * t] = even_2 + odd_2;
    to[4 * t] = even_2 - odd_2;
    to[5 * t] = g[2 * s];
}

INLINE void output_transposed(const vec *y, long s, vec *to, long t) { /* A: 4 -> 6 */
    vec even = y[0] + y[2 * s], odd = y[s] + y[3 * s];
    vec even_2 = y[0] + 4 * y[2 * s], odd_2 = 2 * y[s] + 8 * y[3 * s];
    to[0] = y[0];
    to[t] = even + odd;
    to[2 * t] = even - odd;
    to[3 * t] = even_2 + odd_2;
    to[4 * t] = even_2 - odd_2;
    to[5 * t] = y[3 * s];
}

INLINE void output(const vec *m, long s, vec *to, long t) { /* A^T: 6 -> 4 */
    vec even = m[s] + m[2 * s], odd = m[s] - m[2 * s];
    vec even_2 = m[3 * s] + m[4 * s], odd_2 = m[3 * s] - m[4 * s];
    to[0] = m[0] + even + even_2;
    to[t] = odd + 2 * odd_2;
    to[2 * t] = even + 4 * even_2;
    to[3 * t] = odd + 8 * odd_2 + m[5 * s];
}

INLINE void kernel_transposed(const vec *m, long s, vec *to, long t) { /* G^T: 6 -> 3 */
    vec even = m[s] + m[2 * s], odd = m[s] - m[2 * s];
    vec even_2 = m[3 * s] + m[4 * s], odd_2 = m[3 * s] - m[4 * s];
    to[0] = m[0] * (1 / 4.f) - even * (1 / 6.f) + even_2 * (1 / 24.f);
    to[t] = odd_2 * (1 / 12.f) - odd * (1 / 6.f);
    to[2 * t] = (even_2 - even) * (1 / 6.f) + m[5 * s];
}

/* Both axes of a tile: (m, m) -> (n, n). */
INLINE void both(Line *line, int m, int n, const vec *from, vec *to) {
    vec half[36];
    for (int j = 0; j < m; j++)
        line(from + j, m, half + j, m);
    for (int i = 0; i < n; i++)
        line(half + i * m, 1, to + i * n, 1);
}

/* A row of tiles. Each takes a window of pixels, `step` pixels from the next; outside are zeros. */
INLINE void to_tiles(Line *line, int window, int step, const float *images, float *tiles,
                     Shape shape, long row) {
    long height = shape.rows * step, width = shape.columns * step, channels = shape.channels;
    long top = row % shape.rows * step - (window - step) / 2;
    const float *image = images + row / shape.rows * height * width * channels;
    for (long column = 0; column < shape.columns; column++) {
        long left = column * step - (window - step) / 2;
        float *to = tiles + (row * shape.columns + column) * 36 * channels;
        for (long c = 0; c < channels; c += CACHE_LINE) {
            vec pixels[36], values[CACHE_LINE / LANES][36];
            for (int part = 0; part < CACHE_LINE / LANES; part++) {
                for (int i = 0; i < window; i++)
                    for (int j = 0; j < window; j++) {
                        long y = top + i, x = left + j;
                        int inside = y >= 0 && y < height && x >= 0 && x < width;
                        const float *pixel = image + (y * width + x) * channels + c + part * LANES;
                        pixels[i * window + j] = inside ? load(pixel) : (vec){0};
                    }
                both(line, window, 6, pixels, values[part]);
            }
            for (int i = 0; i < 36; i++)
                for (int part = 0; part < CACHE_LINE / LANES; part++)
                    store(to + i * channels + c + part * LANES, values[part][i]);
        }
    }
}

/* A row of tiles, each of which gives step * step pixels. */
INLINE void to_images(Line *line, int step, const float *planes, float *images, const float *bias,
                      const float *plus, Shape shape, long row) {
    long width = shape.columns * step, channels = shape.channels;
    long plane = shape.count * shape.rows * shape.columns * channels;
    for (long column = 0; column < shape.columns; column++) {
        const float *from = planes + (row * shape.columns + column) * channels;
        long first = (row * step * width + column * step) * channels;
        for (long c = 0; c < channels; c += CACHE_LINE) {
            vec values[CACHE_LINE / LANES][36], pixels[16];
            for (int i = 0; i < 36; i++)
                for (int part = 0; part < CACHE_LINE / LANES; part++)
                    values[part][i] = load(from + i * plane + c + part * LANES);
            for (int part = 0; part < CACHE_LINE / LANES; part++) {
                long channel = c + part * LANES;
                both(line, 6, step, values[part], pixels);
                vec all = bias ? load(bias + channel) : (vec){0};
                for (int i = 0; i < step; i++)
                    for (int j = 0; j < step; j++) {
                        long pixel = first + (i * width + j) * channels + channel;
                        vec own = plus ? load(plus + pixel) : (vec){0};
                        store(images + pixel, pixels[i * step + j] + all + own);
                    }
            }
        }
    }
}

/* A transform by its number in winograd.py. Only `output` adds a bias, (channels), and images. */
void transform(long number, const float *from, float *to, const float *bias, const float *plus,
               long count, long rows, long columns, long channels, long threads) {
    Shape shape = {count, rows, columns, channels};
#pragma omp parallel for num_threads(threads) if (count * rows * columns * channels >= SERIAL)
    for (long row = 0; row < count * rows; row++)
        switch (number) {
        case 0: to_tiles(input, 6, 4, from, to, shape, row); break;
        case 1: to_tiles(kernel, 3, 3, from, to, shape, row); break;
        case 2: to_tiles(output_transposed, 4, 4, from, to, shape, row); break;
        case 3: to_images(output, 4, from, to, bias, plus, shape, row); break;
        case 4: to_images(kernel_transposed, 3, from, to, bias, plus, shape, row); break;
        }
}
