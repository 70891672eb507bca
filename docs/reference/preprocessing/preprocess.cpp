// From an upright RGB picture to the network's input, bit for bit as atopipe's bundle does it. No libraries.
//
//   g++ -O2 -std=c++17 -ffp-contract=off preprocess.cpp -o preprocess
//   ./preprocess picture.ppm preprocess.txt > input.f32
//
// picture.ppm: P6 with 8 bits. preprocess.txt: the numbers of preprocess.json, separated by spaces:
// interpolation resize_height resize_width height width mean(3) std(3). Output: float32 [3, height, width].
// The steps are numbered as in docs/reference/preprocessing.md.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

struct Image {  // uint8 [height, width, 3]
    int height, width;
    std::vector<uint8_t> pixels;
};

struct Settings {
    std::string interpolation;
    int resize[2], size[2];  // height, width
    float mean[3], std[3];
};

struct Box {  // of the picture, in its pixels
    double left, top, right, bottom;
};

static double triangle(double x) { return x = std::fabs(x), x < 1 ? 1 - x : 0; }

static double cubic(double x) {
    const double a = -0.5;
    x = std::fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static double sinc(double x) {
    if (x == 0) return 1;
    x *= M_PI;
    return std::sin(x) / x;
}

static double lanczos(double x) { return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Filter {
    double (*weight)(double);
    double support;
};

static Filter filter_of(const std::string& name) {
    if (name == "bicubic") return {cubic, 2};
    if (name == "lanczos") return {lanczos, 3};
    if (name == "bilinear") return {triangle, 1};
    std::cerr << "unknown interpolation " << name << "\n";
    std::exit(1);
}

// Step 4: which inputs make an output, and by what weights, in units of 2^-22.
struct Taps {
    int first;
    std::vector<int> weights;
};

const int BITS = 22;

static std::vector<Taps> taps(int inputs, double from, double to, int outputs, const Filter& filter) {
    // The length of a box is rounded to float32, as its edges are.
    const double scale = static_cast<float>(to - from) / static_cast<double>(outputs), stretch = std::max(scale, 1.0), support = filter.support * stretch;
    std::vector<Taps> found(outputs);
    for (int output = 0; output < outputs; ++output) {
        const double center = from + (output + 0.5) * scale;
        const int first = std::max(static_cast<int>(center - support + 0.5), 0);
        const int count = std::min(static_cast<int>(center + support + 0.5), inputs) - first;
        std::vector<double> weights(count);
        double sum = 0;
        for (int x = 0; x < count; ++x) sum += weights[x] = filter.weight((x + first - center + 0.5) * (1.0 / stretch));
        found[output].first = first;
        for (double weight : weights) {
            if (sum != 0) weight /= sum;
            found[output].weights.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << BITS)));
        }
    }
    return found;
}

static uint8_t clip(int64_t sum) { return static_cast<uint8_t>(std::clamp<int64_t>(sum >> BITS, 0, 255)); }

// Step 4: along one axis; across the other one nothing changes.
static Image along_rows(const Image& image, const std::vector<Taps>& columns) {
    Image result{image.height, static_cast<int>(columns.size()), {}};
    result.pixels.resize(3ull * result.height * result.width);
    for (int y = 0; y < result.height; ++y)
        for (int x = 0; x < result.width; ++x)
            for (int channel = 0; channel < 3; ++channel) {
                int64_t sum = 1 << (BITS - 1);
                for (size_t tap = 0; tap < columns[x].weights.size(); ++tap)
                    sum += static_cast<int64_t>(columns[x].weights[tap]) *
                           image.pixels[3ull * (static_cast<size_t>(y) * image.width + columns[x].first + tap) + channel];
                result.pixels[3ull * (static_cast<size_t>(y) * result.width + x) + channel] = clip(sum);
            }
    return result;
}

static Image transposed(const Image& image) {
    Image result{image.width, image.height, std::vector<uint8_t>(image.pixels.size())};
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < image.width; ++x)
            for (int channel = 0; channel < 3; ++channel)
                result.pixels[3ull * (static_cast<size_t>(x) * image.height + y) + channel] =
                    image.pixels[3ull * (static_cast<size_t>(y) * image.width + x) + channel];
    return result;
}

static Image resized(Image image, int height, int width, const Box& box, const Filter& filter) {
    const bool across = width != image.width || box.left != 0 || box.right != width;
    const bool down = height != image.height || box.top != 0 || box.bottom != height;
    const std::vector<Taps> columns = taps(image.width, box.left, box.right, width, filter);
    const std::vector<Taps> rows = taps(image.height, box.top, box.bottom, height, filter);
    const bool strip = image.height > 16ll * image.width;
    if (down && strip) image = transposed(along_rows(transposed(image), rows));
    if (across) image = along_rows(image, columns);
    if (down && !strip) image = transposed(along_rows(transposed(image), rows));
    return image;
}

static Image cropped(const Image& image, int top, int left, int height, int width) {
    Image result{height, width, {}};
    for (int y = 0; y < height; ++y) {
        const auto begin = image.pixels.begin() + 3ll * (static_cast<int64_t>(top + y) * image.width + left);
        result.pixels.insert(result.pixels.end(), begin, begin + 3ll * width);
    }
    return result;
}

// Steps 3 to 5: uint8 [height, width, 3].
static Image fitted(const Image& image, const Settings& to) {
    const double scale = std::max(static_cast<double>(to.resize[0]) / image.height,
                                  static_cast<double>(to.resize[1]) / image.width);
    const int height = std::max(to.resize[0], static_cast<int>(std::nearbyint(image.height * scale)));
    const int width = std::max(to.resize[1], static_cast<int>(std::nearbyint(image.width * scale)));
    const int top = (height - to.size[0]) / 2, left = (width - to.size[1]) / 2;
    const Filter filter = filter_of(to.interpolation);
    if (static_cast<int64_t>(height) * width > 16ll * to.resize[0] * to.resize[1]) {
        const double down = static_cast<double>(image.height) / height, across = static_cast<double>(image.width) / width;
        // The edges of a box are float32.
        const Box box{static_cast<float>(left * across), static_cast<float>(top * down),
                      static_cast<float>((left + to.size[1]) * across), static_cast<float>((top + to.size[0]) * down)};
        return resized(image, to.size[0], to.size[1], box, filter);
    }
    const Box whole{0, 0, static_cast<double>(image.width), static_cast<double>(image.height)};
    if (height == image.height && width == image.width) return cropped(image, top, left, to.size[0], to.size[1]);
    return cropped(resized(image, height, width, whole, filter), top, left, to.size[0], to.size[1]);
}

// Step 6: float32 [3, height, width], each operation rounded to float32.
static std::vector<float> normalised(const Image& image, const Settings& to) {
    std::vector<float> result;
    for (int channel = 0; channel < 3; ++channel)
        for (size_t place = channel; place < image.pixels.size(); place += 3) {
            const float share = static_cast<float>(image.pixels[place]) / 255.0f;
            const float centred = share - to.mean[channel];
            result.push_back(centred / to.std[channel]);
        }
    return result;
}

int main(int count, char** arguments) {
    if (count != 3) return std::cerr << "preprocess PICTURE.ppm SETTINGS.txt > INPUT.f32\n", 2;
    std::ifstream picture(arguments[1], std::ios::binary), numbers(arguments[2]);
    std::string magic;
    Image image{};
    int most = 0;
    Settings to{};
    picture >> magic >> image.width >> image.height >> most;
    picture.get();
    numbers >> to.interpolation >> to.resize[0] >> to.resize[1] >> to.size[0] >> to.size[1];
    for (float& value : to.mean) numbers >> value;
    for (float& value : to.std) numbers >> value;
    if (magic != "P6" || most != 255 || !picture || !numbers) return std::cerr << "a file is damaged\n", 1;
    image.pixels.resize(3ull * image.height * image.width);
    picture.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!picture) return std::cerr << "the picture is cut off\n", 1;
    const std::vector<float> input = normalised(fitted(image, to), to);
    std::fwrite(input.data(), sizeof(float), input.size(), stdout);
}
