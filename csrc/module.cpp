// The pybind11 module tokenflow_ext._C. Loading it registers every kernel (each
// <op>.cpp does so for itself); what it exposes is no tensor op: facts about the build
// and the machine, the choice of instruction set, and what the machine can do at most.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/isa.h"
#include "ops/ceilings/ceilings.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of tokenflow_ext.";
  m.def("build", [] {
    py::dict facts;
    facts["torch"] = TFX_BUILD_TORCH;
    facts["compiler"] = TFX_BUILD_COMPILER;
    facts["cuda"] = TFX_BUILD_CUDA;  // empty: no CUDA kernels
    facts["cuda_architectures"] = TFX_BUILD_ARCHS;
    return facts;
  });
  m.def(
      "isa", [] { return tokenflow::isa_name(tokenflow::active_isa()); },
      "Instruction set that the CPU kernels use now.");
  m.def("available_isas", &tokenflow::available_isas,
        "Instruction sets that this machine and build have, best first.");
  m.def(
      "force_isa",
      [](const std::string& name) {
        if (!tokenflow::force_isa(name))
          throw py::value_error(
              "force_isa: name must be one of available_isas(), got '" + name + "'");
      },
      py::arg("name"), "Use this instruction set from now on; '' for the best one.");
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("fma_ceiling", &tokenflow::fma_ceiling, py::arg("rounds"), unlocked,
        "Run float32 multiply-adds on this thread; operations done.");
  m.def("int8_ceiling", &tokenflow::int8_ceiling, py::arg("rounds"), unlocked,
        "Run int8 products and additions on this thread; operations done.");
  m.def("int8_instruction", &tokenflow::int8_instruction,
        "What int8_ceiling runs on this machine.");
  m.def(
      "copy_ceiling",
      [](uintptr_t from, uintptr_t to, int64_t bytes, int64_t rounds, bool around) {
        return tokenflow::copy_ceiling(reinterpret_cast<const void*>(from),
                                       reinterpret_cast<void*>(to), bytes, rounds,
                                       around);
      },
      py::arg("from_address"), py::arg("to_address"), py::arg("bytes"),
      py::arg("rounds"), py::arg("around"), unlocked,
      "Copy memory on this thread, 64-byte aligned; bytes read and written.");
}
