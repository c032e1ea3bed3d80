// Instance norm with an affine, ReLU and 2x2 average pool of channels-last maps, bf16 or fp32, forward and backward.
//
// One image at a time: its map (256 KB at 32x32, width 128) stays in the second-level cache between the two passes that
// either direction needs. A pass walks the pixels in order and holds the statistics of GROUP channels in vector
// registers, so there is no sum across lanes. Sums are fp32 around a shift (a pixel, or the mean): no cancellation.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

using bf16 = uint16_t;

// Numbers in a vector register, and vectors whose statistics are held at a time: as many as there are registers for.
#ifdef __AVX512F__
constexpr int LANES = 16, VECTORS = 8;
#else
constexpr int LANES = 8, VECTORS = 2;
#endif
constexpr int GROUP = LANES * VECTORS;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const bf16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(bf16* to, Floats values) {  // to nearest, ties to even
    Bits bits = (Bits)values;
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats where_positive(Floats condition, Floats values) { return condition > 0 ? values : Floats{}; }

// The four pixels under pooled pixel (i, j).
struct Window {
    const int64_t width, channels;
    template <typename Act>
    inline void operator()(int64_t i, int64_t j, Act act) const {
        const int64_t corner = (2 * i * width + 2 * j) * channels;
        act(corner);
        act(corner + channels);
        act(corner + width * channels);
        act(corner + (width + 1) * channels);
    }
};

template <typename Value>
void forward_one(const Value* map, const float* weight, const float* bias, Value* pooled, float* mean, float* scale,
                 int64_t height, int64_t width, int64_t channels, float eps) {
    const float pixels = float(height * width);
    Floats shift[VECTORS], sum[VECTORS] = {}, squares[VECTORS] = {}, slope[VECTORS], offset[VECTORS];
    for (int v = 0; v < VECTORS; ++v) shift[v] = load(map + v * LANES);
    for (int64_t p = 0; p < height * width; ++p)
        for (int v = 0; v < VECTORS; ++v) {
            const Floats x = load(map + p * channels + v * LANES) - shift[v];
            sum[v] += x;
            squares[v] += x * x;
        }
    for (int v = 0; v < VECTORS; ++v) {
        const Floats shifted = sum[v] / pixels, spread = squares[v] / pixels - shifted * shifted;
        const Floats variance = where_positive(spread, spread) + eps;
        Floats reciprocal;
        for (int k = 0; k < LANES; ++k) reciprocal[k] = 1.0f / std::sqrt(variance[k]);
        const Floats centre = shifted + shift[v];
        store(mean + v * LANES, centre);
        store(scale + v * LANES, reciprocal);
        slope[v] = reciprocal * load(weight + v * LANES);
        offset[v] = load(bias + v * LANES) - centre * slope[v];
    }
    const Window window{width, channels};
    for (int64_t i = 0; i < height / 2; ++i)
        for (int64_t j = 0; j < width / 2; ++j)
            for (int v = 0; v < VECTORS; ++v) {
                Floats total = {};
                window(i, j, [&](int64_t at) {
                    const Floats y = load(map + at + v * LANES) * slope[v] + offset[v];
                    total += where_positive(y, y);
                });
                store(pooled + (i * (width / 2) + j) * channels + v * LANES, 0.25f * total);
            }
}

template <typename Value>
void backward_one(const Value* map, const Value* gradient, const float* weight, const float* bias, const float* mean,
                  const float* scale, Value* to_map, float* to_weight, float* to_bias, int64_t height, int64_t width,
                  int64_t channels) {
    const float pixels = float(height * width);
    Floats centre[VECTORS], slope[VECTORS], offset[VECTORS], constant[VECTORS] = {}, linear[VECTORS] = {};
    for (int v = 0; v < VECTORS; ++v) {
        centre[v] = load(mean + v * LANES);
        slope[v] = load(scale + v * LANES) * load(weight + v * LANES);
        offset[v] = load(bias + v * LANES);
    }
    const Window window{width, channels};
    for (int64_t i = 0; i < height / 2; ++i)
        for (int64_t j = 0; j < width / 2; ++j)
            for (int v = 0; v < VECTORS; ++v) {
                const Floats g = load(gradient + (i * (width / 2) + j) * channels + v * LANES);
                window(i, j, [&](int64_t at) {
                    const Floats x = load(map + at + v * LANES) - centre[v];
                    const Floats passed = where_positive(x * slope[v] + offset[v], g);
                    constant[v] += passed;
                    linear[v] += passed * x;
                });
            }
    for (int v = 0; v < VECTORS; ++v) {
        const Floats reciprocal = load(scale + v * LANES);
        const Floats sum = 0.25f * constant[v], moment = 0.25f * linear[v] * reciprocal;
        store(to_bias + v * LANES, sum);
        store(to_weight + v * LANES, moment);
        constant[v] = slope[v] * sum / pixels;
        linear[v] = slope[v] * moment * reciprocal / pixels;
    }
    for (int64_t i = 0; i < height / 2; ++i)
        for (int64_t j = 0; j < width / 2; ++j)
            for (int v = 0; v < VECTORS; ++v) {
                const Floats g = 0.25f * slope[v] * load(gradient + (i * (width / 2) + j) * channels + v * LANES);
                window(i, j, [&](int64_t at) {
                    const Floats x = load(map + at + v * LANES) - centre[v];
                    const Floats passed = where_positive(x * slope[v] + offset[v], g);
                    store(to_map + at + v * LANES, passed - constant[v] - linear[v] * x);
                });
            }
}

// map (images, height, width, channels) -> pooled (images, height / 2, width / 2, channels); mean, scale (images, channels)
template <typename Value>
void forward(const Value* map, const float* weight, const float* bias, Value* pooled, float* mean, float* scale,
             int64_t images, int64_t height, int64_t width, int64_t channels, float eps) {
    const int64_t groups = channels / GROUP, pixels = height * width * channels;
#pragma omp parallel for
    for (int64_t task = 0; task < images * groups; ++task) {
        const int64_t b = task / groups, c = task % groups * GROUP, row = b * channels + c;
        forward_one(map + b * pixels + c, weight + c, bias + c, pooled + b * pixels / 4 + c, mean + row, scale + row,
                    height, width, channels, eps);
    }
}

// to_weight and to_bias hold one row per image: the caller adds them up.
template <typename Value>
void backward(const Value* map, const Value* gradient, const float* weight, const float* bias, const float* mean,
              const float* scale, Value* to_map, float* to_weight, float* to_bias, int64_t images, int64_t height,
              int64_t width, int64_t channels) {
    const int64_t groups = channels / GROUP, pixels = height * width * channels;
#pragma omp parallel for
    for (int64_t task = 0; task < images * groups; ++task) {
        const int64_t b = task / groups, c = task % groups * GROUP, row = b * channels + c;
        backward_one(map + b * pixels + c, gradient + b * pixels / 4 + c, weight + c, bias + c, mean + row, scale + row,
                     to_map + b * pixels + c, to_weight + row, to_bias + row, height, width, channels);
    }
}

}  // namespace

extern "C" int64_t norm_relu_pool_group() { return GROUP; }

#define POTSTILL_FOR(VALUE, NAME)                                                                                      \
    extern "C" void norm_relu_pool_##NAME(const VALUE* map, const float* weight, const float* bias, VALUE* pooled,     \
                                          float* mean, float* scale, int64_t images, int64_t height, int64_t width,    \
                                          int64_t channels, float eps) {                                               \
        forward(map, weight, bias, pooled, mean, scale, images, height, width, channels, eps);                         \
    }                                                                                                                  \
    extern "C" void norm_relu_pool_backward_##NAME(                                                                    \
        const VALUE* map, const VALUE* gradient, const float* weight, const float* bias, const float* mean,            \
        const float* scale, VALUE* to_map, float* to_weight, float* to_bias, int64_t images, int64_t height,           \
        int64_t width, int64_t channels) {                                                                             \
        backward(map, gradient, weight, bias, mean, scale, to_map, to_weight, to_bias, images, height, width,          \
                 channels);                                                                                            \
    }

POTSTILL_FOR(bf16, bf16)
POTSTILL_FOR(float, fp32)
