// The transforms of Winograd's F(4x4, 3x3) between channels-last fp32 maps and 36 planes (tiles, channels) of numbers;
// the products between them are the caller's. Channels lie in vector registers, so one tile's numbers are whole vectors.

#include <cstdint>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int TILE = 4, SIDE = 6;

typedef float Floats __attribute__((vector_size(4 * LANES)));

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// Each rule multiplies IN numbers, `step` apart, by a constant matrix (OUT, IN) to OUT numbers, `stride` apart.

struct FromMap {  // B^T
    static constexpr int IN = SIDE, OUT = SIDE;
    static inline void apply(const Floats* x, int step, Floats* y, int stride) {
        const Floats a = x[0], b = x[step], c = x[2 * step], d = x[3 * step], e = x[4 * step], f = x[5 * step];
        const Floats even = e - 4.f * c, odd = d - 4.f * b, wide = e - c, shift = 2.f * (d - b);
        y[0] = 4.f * a - 5.f * c + e;
        y[stride] = even + odd;
        y[2 * stride] = even - odd;
        y[3 * stride] = wide + shift;
        y[4 * stride] = wide - shift;
        y[5 * stride] = 4.f * b - 5.f * d + f;
    }
};

struct ToMap {  // A^T
    static constexpr int IN = SIDE, OUT = TILE;
    static inline void apply(const Floats* x, int step, Floats* y, int stride) {
        const Floats near = x[step] + x[2 * step], far = x[3 * step] + x[4 * step];
        const Floats slope = x[step] - x[2 * step], steep = x[3 * step] - x[4 * step];
        y[0] = x[0] + near + far;
        y[stride] = slope + 2.f * steep;
        y[2 * stride] = near + 4.f * far;
        y[3 * stride] = slope + 8.f * steep + x[5 * step];
    }
};

struct FromGradient {  // A
    static constexpr int IN = TILE, OUT = SIDE;
    static inline void apply(const Floats* x, int step, Floats* y, int stride) {
        const Floats a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
        const Floats even = a + c, odd = b + d, wide = a + 4.f * c, steep = 2.f * b + 8.f * d;
        y[0] = a;
        y[stride] = even + odd;
        y[2 * stride] = even - odd;
        y[3 * stride] = wide + steep;
        y[4 * stride] = wide - steep;
        y[5 * stride] = d;
    }
};

template <typename Rule>
inline void both_sides(const Floats* x, Floats* y) {
    Floats half[Rule::OUT * Rule::IN];
    for (int j = 0; j < Rule::IN; ++j) Rule::apply(x + j, Rule::IN, half + j, Rule::IN);
    for (int i = 0; i < Rule::OUT; ++i) Rule::apply(half + i * Rule::IN, 1, y + i * Rule::OUT, 1);
}

struct Grid {
    const int64_t images, height, width, channels;
    const int64_t rows = (height + TILE - 1) / TILE, columns = (width + TILE - 1) / TILE;
    const int64_t tiles = images * rows * columns, plane = tiles * channels, map = height * width * channels;

    int64_t image(int64_t tile) const { return tile / (rows * columns) * map; }
    int64_t top(int64_t tile) const { return tile / columns % rows * TILE; }
    int64_t left(int64_t tile) const { return tile % columns * TILE; }
    bool holds(int64_t i, int64_t j) const { return i >= 0 && i < height && j >= 0 && j < width; }
    int64_t at(int64_t i, int64_t j) const { return (i * width + j) * channels; }
};

// `frame`: pixels by which what a tile reads begins above and left of it; what lies outside the map is 0.
template <typename Rule>
void to_planes(const float* map, float* planes, const Grid grid, int64_t frame) {
#pragma omp parallel for
    for (int64_t t = 0; t < grid.tiles; ++t) {
        const float* image = map + grid.image(t);
        const int64_t top = grid.top(t) - frame, left = grid.left(t) - frame;
        for (int64_t c = 0; c < grid.channels; c += LANES) {
            Floats x[Rule::IN * Rule::IN], y[Rule::OUT * Rule::OUT];
            for (int i = 0; i < Rule::IN; ++i)
                for (int j = 0; j < Rule::IN; ++j)
                    x[i * Rule::IN + j] =
                        grid.holds(top + i, left + j) ? load(image + grid.at(top + i, left + j) + c) : Floats{};
            both_sides<Rule>(x, y);
            for (int k = 0; k < Rule::OUT * Rule::OUT; ++k)
                store(planes + k * grid.plane + t * grid.channels + c, y[k]);
        }
    }
}

}  // namespace

extern "C" {

void winograd_from_map(const float* map, float* planes, int64_t images, int64_t height, int64_t width, int64_t channels) {
    to_planes<FromMap>(map, planes, Grid{images, height, width, channels}, 1);
}

void winograd_from_gradient(const float* map, float* planes, int64_t images, int64_t height, int64_t width,
                            int64_t channels) {
    to_planes<FromGradient>(map, planes, Grid{images, height, width, channels}, 0);
}

void winograd_to_map(const float* planes, float* map, const float* bias, int64_t images, int64_t height, int64_t width,
                     int64_t channels) {
    const Grid grid{images, height, width, channels};
#pragma omp parallel for
    for (int64_t t = 0; t < grid.tiles; ++t) {
        float* image = map + grid.image(t);
        const int64_t top = grid.top(t), left = grid.left(t);
        for (int64_t c = 0; c < channels; c += LANES) {
            Floats x[SIDE * SIDE], y[TILE * TILE];
            for (int k = 0; k < SIDE * SIDE; ++k) x[k] = load(planes + k * grid.plane + t * channels + c);
            both_sides<ToMap>(x, y);
            for (int i = 0; i < TILE; ++i)
                for (int j = 0; j < TILE; ++j)
                    if (grid.holds(top + i, left + j))
                        store(image + grid.at(top + i, left + j) + c, y[i * TILE + j] + load(bias + c));
        }
    }
}

}
