// Runs a program of `dts export aoti` without Python: one base, and for each row of the batch its task and its tokens.
//
//     run_program program.pt2 mood:101,151,102 topic:211,261,212 base:111,161,112
//
// Slots, weights and the order of the inputs stand in the program's own metadata.  Rows have as many tokens each.
// Build: see examples/README.md; it needs PyTorch's headers and libraries, and nothing of this package.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

int main(int count, char** words) {
  if (count < 3) {
    std::cerr << "usage: " << words[0] << " program.pt2 task:id,id,... [task:id,id,... ...]\n";
    return 2;
  }
  torch::inductor::AOTIModelPackageLoader program(words[1]);
  auto about = program.get_metadata();
  const int64_t rows = count - 2, places = std::stoll(about.at("places"));
  at::Tensor slots = at::full({rows, places}, -1, at::kInt), weights = at::zeros({rows, places});
  std::vector<at::Tensor> ids;
  for (int64_t row = 0; row < rows; ++row) {
    const std::string word = words[row + 2], task = word.substr(0, word.find(':'));
    if (task != "base") {  // slot -1 is the base
      auto slot = about.find("task " + task);
      if (slot == about.end()) {
        std::cerr << "the program has no task " << task << "\n";
        return 2;
      }
      slots[row][0] = std::stoi(slot->second);
      weights[row][0] = 1.0;
    }
    std::vector<int64_t> tokens;
    std::istringstream list(word.substr(word.find(':') + 1));
    for (std::string id; std::getline(list, id, ',');) tokens.push_back(std::stoll(id));
    ids.push_back(at::tensor(tokens, at::kLong));
  }
  at::Tensor tokens = at::stack(ids);
  std::vector<at::Tensor> inputs;
  std::istringstream names(about.at("inputs"));
  for (std::string name; std::getline(names, name, ',');)
    inputs.push_back(name == "slots" ? slots : name == "weights" ? weights : name == "input_ids" ? tokens
                                                                           : at::ones_like(tokens));  // the mask
  at::Tensor logits = program.run(inputs)[0];
  for (int64_t row = 0; row < rows; ++row) {
    std::cout << words[row + 2] << " ->";
    for (int64_t i = 0; i < logits.size(1); ++i) std::cout << ' ' << logits[row][i].item<float>();
    std::cout << '\n';
  }
}
