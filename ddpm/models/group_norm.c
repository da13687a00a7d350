/* Group norm and the activation after it, of group_norm_cpu.py. What lies between them is not
stored, and an image is read again while it is still in the cache.

Images are (count, pixels, channels), contiguous, in float32. The number of channels is a multiple
of 16. Pixels are taken in blocks, and the sums of the blocks are added in double. A thread takes
whole images, or blocks of one where there are fewer images than threads: the results are equal. */

#include <math.h>

#include "vectors.h"

#define BLOCK 256 /* pixels */

enum { NONE, SILU, GELU };

typedef struct {
    long pixels, channels, groups;
} Shape;

INLINE vec splat(float value) { return (vec){0} + value; }

INLINE vec choose(ints condition, vec yes, vec no) {
    return (vec)((condition & (ints)yes) | (~condition & (ints)no));
}

/* 2^n exp(r) with |r| <= log(2) / 2, by the Taylor series of exp(r). Larger x than 88 count as 88,
smaller ones than -87 as -87. */
INLINE vec exponential(vec x) {
    x = choose(x > splat(88), splat(88), choose(x < splat(-87), splat(-87), x));
    vec n = x * 1.44269504f + 0x1.8p23f - 0x1.8p23f;    /* x / log(2), rounded */
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* x - n log(2), in two steps */
    vec p = (((splat(1 / 5040.f) * r + 1 / 720.f) * r + 1 / 120.f) * r + 1 / 24.f) * r + 1 / 6.f;
    vec power = (vec)((__builtin_convertvector(n, ints) + 127) << 23);
    return (((p * r + 1 / 2.f) * r + 1) * r + 1) * power;
}

/* The normal distribution's P(X < u), and its density: Abramowitz & Stegun 1964, 7.1.26. */
INLINE vec normal(vec u, vec *density) {
    vec t = 1 / (1 + 0.23164190f * choose(u < 0, -u, u));
    vec p = ((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f;
    vec power = exponential(-0.5f * u * u), tail = 0.5f * (p * t + 0.254829592f) * t * power;
    *density = 0.398942280f * power;
    return choose(u < 0, tail, 1 - tail);
}

INLINE vec activate(long activation, vec u) {
    vec density;
    switch (activation) {
    case SILU: return u / (1 + exponential(-u));
    case GELU: return u * normal(u, &density);
    default: return u;
    }
}

INLINE vec slope(long activation, vec u) { /* of the activation at u */
    vec s, density;
    switch (activation) {
    case SILU: s = 1 / (1 + exponential(-u)); return s * (1 + u * (1 - s));
    case GELU: s = normal(u, &density); return s + u * density;
    default: return splat(1);
    }
}

static long blocks(Shape shape) { return (shape.pixels + BLOCK - 1) / BLOCK; }

static long end(Shape shape, long block) { /* the first pixel after a block */
    return (block + 1) * BLOCK < shape.pixels ? (block + 1) * BLOCK : shape.pixels;
}

/* The sum of a channel over all blocks, whose sums lie `step` floats apart. */
static double total(const float *sums, long number, long step) {
    double result = 0;
    for (long block = 0; block < number; block++)
        result += sums[block * step];
    return result;
}

/* Forward: of each channel the sum, and the squares of the differences from the block's mean. */
static void add_up(Shape shape, const float *x, float *sums, long block) {
    long channels = shape.channels, first = block * BLOCK, last = end(shape, block);
    float *squares = sums + channels, of_pixels = 1.f / (last - first);
    for (long c = 0; c < 2 * channels; c++)
        sums[c] = 0;
    for (long pixel = first; pixel < last; pixel++)
        for (long c = 0; c < channels; c += LANES)
            store(sums + c, load(sums + c) + load(x + pixel * channels + c));
    for (long pixel = first; pixel < last; pixel++)
        for (long c = 0; c < channels; c += LANES) {
            vec difference = load(x + pixel * channels + c) - load(sums + c) * of_pixels;
            store(squares + c, load(squares + c) + difference * difference);
        }
}

/* The squares of a channel's differences from its mean, of all blocks (Chan et al. 1983). */
static double spread(Shape shape, const float *sums, double mean) {
    double result = 0;
    for (long block = 0; block < blocks(shape); block++, sums += 2 * shape.channels) {
        double pixels = end(shape, block) - block * BLOCK;
        double difference = sums[0] / pixels - mean;
        result += sums[shape.channels] + pixels * difference * difference;
    }
    return result;
}

/* Mean and 1 / std of each group of x + shift, and with them y = activation(scale x + offset). */
static void normalise(Shape shape, const float *shift, const float *weight, const float *bias,
                      double eps, const float *sums, float *means, float *rstds, float *scale,
                      float *offset) {
    long channels = shape.channels, depth = channels / shape.groups, step = 2 * channels;
    double of_pixels = 1. / shape.pixels, of_channels = 1. / depth; /* factors of means */
    for (long group = 0; group < shape.groups; group++) {
        double mean = 0, variance = 0, own[depth];
        for (long i = 0, c = group * depth; i < depth; i++, c++) {
            double channel = total(sums + c, blocks(shape), step) * of_pixels;
            own[i] = channel + (shift ? shift[c] : 0);
            mean += own[i] * of_channels;
            variance += spread(shape, sums + c, channel) * of_pixels * of_channels;
        }
        for (long i = 0; i < depth; i++)
            variance += (own[i] - mean) * (own[i] - mean) * of_channels;
        double rstd = 1 / sqrt(variance + eps);
        means[group] = mean, rstds[group] = rstd;
        for (long c = group * depth; c < (group + 1) * depth; c++) {
            scale[c] = weight[c] * rstd;
            offset[c] = bias[c] + ((shift ? shift[c] : 0) - mean) * rstd * weight[c];
        }
    }
}

INLINE void apply(Shape shape, long activation, const float *x, const float *scale,
                  const float *offset, float *y, long block) {
    long channels = shape.channels;
    for (long pixel = block * BLOCK; pixel < end(shape, block); pixel++)
        for (long c = 0; c < channels; c += LANES) {
            long i = pixel * channels + c;
            store(y + i, activate(activation, load(x + i) * load(scale + c) + load(offset + c)));
        }
}

/* x, y: (count, pixels, channels). shift: (count, channels) or null. weight, bias: (channels).
To be written: statistics (2, count, groups), the means and 1 / std; memory to work in: sums
(count, blocks, 2, channels), factors (count, 2, channels). */
void group_norm(const float *x, const float *shift, const float *weight, const float *bias,
                float *y, float *statistics, float *sums, float *factors, double eps, long count,
                long pixels, long channels, long groups, long activation, long threads) {
    Shape shape = {pixels, channels, groups};
    long number = blocks(shape), inner = count < threads ? threads : 1;
#pragma omp parallel for num_threads(threads) if (inner == 1)
    for (long i = 0; i < count; i++) {
        const float *image = x + i * pixels * channels;
        float *own = sums + i * number * 2 * channels, *scale = factors + i * 2 * channels;
        float *offset = scale + channels, *to = y + i * pixels * channels;
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (long block = 0; block < number; block++)
            add_up(shape, image, own + block * 2 * channels, block);
        normalise(shape, shift ? shift + i * channels : 0, weight, bias, eps, own,
                  statistics + i * groups, statistics + (count + i) * groups, scale, offset);
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (long block = 0; block < number; block++)
            switch (activation) {
            case NONE: apply(shape, NONE, image, scale, offset, to, block); break;
            case SILU: apply(shape, SILU, image, scale, offset, to, block); break;
            case GELU: apply(shape, GELU, image, scale, offset, to, block); break;
            }
    }
}

/* Backward, with x^ the normalised x + shift: du = dy slope(x^ weight + bias), and the sums of du,
du x^ and x^ of each channel. */
INLINE void add_up_backward(Shape shape, long activation, const float *dy, const float *x,
                            const float *weight, const float *bias, const float *scale,
                            const float *offset, float *du, float *sums, long block) {
    long channels = shape.channels;
    for (long c = 0; c < 3 * channels; c++)
        sums[c] = 0;
    for (long pixel = block * BLOCK; pixel < end(shape, block); pixel++)
        for (long c = 0; c < channels; c += LANES) {
            long i = pixel * channels + c;
            float *sum = sums + c;
            vec x_hat = load(x + i) * load(scale + c) + load(offset + c);
            vec u = x_hat * load(weight + c) + load(bias + c);
            vec value = load(dy + i) * slope(activation, u);
            store(du + i, value);
            store(sum, load(sum) + value);
            store(sum + channels, load(sum + channels) + value * x_hat);
            store(sum + 2 * channels, load(sum + 2 * channels) + x_hat);
        }
}

/* The gradients of bias, weight and shift, and the factors of dx = (du, 1, x) . factors. */
static void differentiate(Shape shape, const float *weight, const float *rstds, const float *sums,
                          const float *offset, float *dbias, float *dweight, float *dshift,
                          float *factors) {
    long channels = shape.channels, depth = channels / shape.groups, step = 3 * channels;
    double inverse = 1. / (shape.pixels * depth); /* of the values of a group */
    for (long group = 0; group < shape.groups; group++) {
        double mean_du = 0, mean_product = 0, rstd = rstds[group];
        for (long c = group * depth; c < (group + 1) * depth; c++) {
            dbias[c] = total(sums + c, blocks(shape), step);
            dweight[c] = total(sums + channels + c, blocks(shape), step);
            mean_du += weight[c] * dbias[c] * inverse;
            mean_product += weight[c] * dweight[c] * inverse;
        }
        for (long c = group * depth; c < (group + 1) * depth; c++) {
            double x_hat = total(sums + 2 * channels + c, blocks(shape), step);
            dshift[c] = weight[c] * dbias[c] - shape.pixels * mean_du - x_hat * mean_product;
            dshift[c] *= rstd;
            factors[c] = rstd * weight[c];
            factors[channels + c] = -rstd * (mean_du + mean_product * offset[c]);
            factors[2 * channels + c] = -rstd * rstd * mean_product;
        }
    }
}

static void apply_backward(Shape shape, const float *x, const float *factors, float *dx,
                           long block) {
    long channels = shape.channels;
    for (long pixel = block * BLOCK; pixel < end(shape, block); pixel++)
        for (long c = 0; c < channels; c += LANES) {
            long i = pixel * channels + c;
            const float *factor = factors + c;
            store(dx + i, load(dx + i) * load(factor) + load(factor + channels) +
                              load(x + i) * load(factor + 2 * channels));
        }
}

/* As `group_norm`. To be written: dx (count, pixels, channels), and dbias, dweight and dshift of
each image (3, count, channels); memory to work in: sums (count, blocks, 3, channels), factors
(count, 5, channels). */
void group_norm_backward(const float *dy, const float *x, const float *shift, const float *weight,
                         const float *bias, const float *statistics, float *dx, float *gradients,
                         float *sums, float *factors, long count, long pixels, long channels,
                         long groups, long activation, long threads) {
    Shape shape = {pixels, channels, groups};
    long number = blocks(shape), inner = count < threads ? threads : 1, size = pixels * channels;
#pragma omp parallel for num_threads(threads) if (inner == 1)
    for (long i = 0; i < count; i++) {
        const float *from = dy + i * size, *image = x + i * size;
        const float *means = statistics + i * groups, *rstds = means + count * groups;
        float *to = dx + i * size, *own = sums + i * number * 3 * channels;
        float *factor = factors + i * 5 * channels, *scale = factor + 3 * channels;
        float *offset = scale + channels, *gradient = gradients + i * channels;
        for (long c = 0; c < channels; c++) {
            long group = c / (channels / groups);
            scale[c] = rstds[group];
            offset[c] = ((shift ? shift[i * channels + c] : 0) - means[group]) * rstds[group];
        }
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (long block = 0; block < number; block++) {
            float *sum = own + block * 3 * channels;
            switch (activation) {
            case NONE:
                add_up_backward(shape, NONE, from, image, weight, bias, scale, offset, to, sum,
                                block);
                break;
            case SILU:
                add_up_backward(shape, SILU, from, image, weight, bias, scale, offset, to, sum,
                                block);
                break;
            case GELU:
                add_up_backward(shape, GELU, from, image, weight, bias, scale, offset, to, sum,
                                block);
                break;
            }
        }
        differentiate(shape, weight, rstds, own, offset, gradient, gradient + count * channels,
                      gradient + 2 * count * channels, factor);
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (long block = 0; block < number; block++)
            apply_backward(shape, image, factor, to, block);
    }
}
