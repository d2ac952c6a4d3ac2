// Print the keypoints of a photograph with OpenVINO's C++ API; neither Python nor spfpn is needed.
//
//   spfpn export spfpn-s --max-keypoints 1000        # once, where spfpn is: spfpn-s.onnx
//   cmake -S examples/cpp -B build -D OpenVINO_DIR=FOLDER && cmake --build build
//   build/points spfpn-s.onnx photo.pgm              # lines of x, y and score
//
// pip install openvino brings headers and libraries. Its FOLDER is what this prints:
//   python -c "from openvino.utils import get_cmake_path; print(get_cmake_path())"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

// Read a gray image (PGM, 8 bits) as float32 [1, 1, height, width] in [0, 1].
ov::Tensor read_pgm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    std::size_t width = 0, height = 0, white = 0;
    file >> magic >> width >> height >> white;
    file.get();  // the line break before the pixels
    if (!file || magic != "P5" || white != 255)
        throw std::runtime_error(path + ": not a PGM of 8 bits");
    std::vector<std::uint8_t> pixels(width * height);
    file.read(reinterpret_cast<char*>(pixels.data()), pixels.size());
    if (!file) throw std::runtime_error(path + ": ends before its last pixel");
    ov::Tensor image(ov::element::f32, {1, 1, height, width});
    for (std::size_t i = 0; i < pixels.size(); ++i) image.data<float>()[i] = pixels[i] / 255.0f;
    return image;
}

int main(int count, char** arguments) try {
    if (count != 3) throw std::runtime_error("usage: points GRAPH.onnx PHOTO.pgm");
    // newer processors would calculate in 16 bits, which moves keypoints
    auto network = ov::Core().compile_model(arguments[1], "CPU",
                                            ov::hint::inference_precision(ov::element::f32));
    auto request = network.create_infer_request();
    request.set_tensor("image", read_pgm(arguments[2]));
    request.infer();
    const auto scores = request.get_tensor("scores");  // [1, N], zeros behind the last keypoint
    const float* xy = request.get_tensor("keypoints").data<float>();  // [1, N, 2]
    for (std::size_t i = 0; i < scores.get_size() && scores.data<float>()[i] > 0; ++i)
        std::printf("%.3f %.3f %.6f\n", xy[2 * i], xy[2 * i + 1], scores.data<float>()[i]);
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
}
