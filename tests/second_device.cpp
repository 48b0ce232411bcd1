// A second device for tests: its tensors lie in the processor's memory, and it refuses what a GPU
// refuses, such as tensors of two devices in one operation.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/device_lazy_init.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);
std::atomic<int64_t> waited{0};

struct Room final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* dest, const void* src, std::size_t count) const final {
    default_copy_data(dest, src, count);
  }
};
Room room;
REGISTER_ALLOCATOR(kType, &room);

// There is one stream, on which all has been done already.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Draws final : c10::GeneratorImpl {
  at::Generator own;
  explicit Draws(uint64_t seed)
      : GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        own(at::detail::createCPUGenerator(seed)) {}
  void set_current_seed(uint64_t seed) override { own.set_current_seed(seed); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "no offset"); }
  uint64_t current_seed() const override { return own.current_seed(); }
  uint64_t seed() override { return own.seed(); }
  void set_state(const c10::TensorImpl& state) override { own.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return own.unsafeGetGeneratorImpl()->get_state();
  }
  Draws* clone_impl() const override {
    auto* made = new Draws(0);
    made->own = own.clone();
    return made;
  }
};

at::Generator& usual() {
  static at::Generator found = at::make_generator<Draws>(0);
  return found;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return usual();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Draws>(c10::detail::getNonDeterministicRandom());
  }
};

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &room, keys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &room, keys, c10::dtype_or_default(dtype));
}

// A tensor of the processor that shares the memory. It may be resized.
at::Tensor on_host(const at::Tensor& t) {
  auto* kept = new at::Storage(t.storage());
  auto* data = kept->mutable_data();
  c10::DataPtr shared(data, kept, [](void* storage) { delete static_cast<at::Storage*>(storage); },
                      at::Device(at::kCPU));
  at::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                                            kept->nbytes(), std::move(shared),
                                                            c10::GetCPUAllocator(), true));
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return made;
}

at::Tensor on_device(const at::Tensor& t) {
  auto made = empty_strided(t.sizes(), t.strides(), t.scalar_type(), {}, {}, {});
  on_host(made).copy_(t);
  return made;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  if (self.device().type() == kType && dst.device().is_cpu()) waited++;
  auto to = dst.device().type() == kType ? on_host(dst) : dst;
  to.copy_(self.device().type() == kType ? on_host(self) : self);
  return dst;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  dst.resize_(self.sizes());
  return copy_from(self, dst, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  waited++;
  return on_host(self).item();
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size,
                          std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size) return self;
  auto made = empty(size, self.scalar_type(), {}, {}, {}, format);
  const_cast<at::Tensor&>(self).unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

// Operations that wait for a GPU, since the shape of what they return depends on numbers.
bool is_waiting(const std::string& name) {
  for (const char* each : {"aten::nonzero", "aten::masked_select", "aten::unique_dim",
                           "aten::_unique2", "aten::unique_consecutive", "aten::equal",
                           "aten::repeat_interleave.Tensor", "aten::bincount"})
    if (name == each) return true;
  return false;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  auto name = schema.overload_name().empty() ? schema.name()
                                             : schema.name() + "." + schema.overload_name();
  if (is_waiting(name)) waited++;
  auto count = schema.arguments().size();
  auto first = stack->size() - count;
  bool is_index = schema.name().find("aten::index") == 0 || schema.name().find("aten::_index") == 0;
  std::vector<std::pair<at::Tensor, at::Tensor>> shared;
  auto moved = [&](const at::Tensor& t, bool is_of_list) -> at::Tensor {
    if (!t.defined()) return t;
    if (t.device().type() == kType) {
      auto host = on_host(t);
      shared.emplace_back(t, host);
      return host;
    }
    TORCH_CHECK(t.device().is_cpu(), name, ": a tensor on ", t.device());
    // As on a GPU: single numbers of the processor are let in.
    TORCH_CHECK(t.dim() == 0 && !is_index && !is_of_list,
                "Expected all tensors to be on the same device, but ", name, " got one on cpu and one on ",
                kDevice);
    return t;
  };
  for (size_t i = first; i < first + count; i++) {
    auto& value = (*stack)[i];
    if (value.isNone() && schema.arguments()[i - first].name() == "generator") {
      value = c10::IValue(static_cast<Draws*>(usual().unsafeGetGeneratorImpl())->own);
    } else if (value.isTensor()) {
      value = moved(value.toTensor(), false);
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> found;
      for (const at::Tensor& t : value.toTensorVector()) found.push_back(moved(t, true));
      value = c10::IValue(found);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> found;
      for (std::optional<at::Tensor> t : value.toOptionalTensorList())
        found.push_back(t.has_value() ? std::optional<at::Tensor>(moved(*t, true)) : std::nullopt);
      value = c10::IValue(found);
    } else if (value.isDevice()) {
      value = c10::IValue(at::Device(at::kCPU));
    } else if (value.isGenerator()) {
      auto draw = value.toGenerator();
      TORCH_CHECK(draw.device().type() == kType, "Expected a '", kDevice.type(),
                  "' device type for generator but found '", draw.device().type(), "'");
      value = c10::IValue(static_cast<Draws*>(draw.unsafeGetGeneratorImpl())->own);
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  auto returns = schema.returns().size();
  auto back = [&](const at::Tensor& t) -> at::Tensor {
    if (!t.defined()) return t;
    for (auto& [own, host] : shared)
      if (host.is_same(t)) {
        return own;
      }
    for (auto& [own, host] : shared)
      TORCH_CHECK(!t.has_storage() || t.numel() == 0 || t.storage().data() != host.storage().data(),
                  name, " returns a view, which this device lacks");
    return on_device(t);
  };
  for (size_t i = stack->size() - returns; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = back(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> found;
      for (const at::Tensor& t : value.toTensorVector()) found.push_back(back(t));
      value = c10::IValue(found);
    }
  }
  // What was resized has memory of its own.
  for (auto& [own, host] : shared)
    if (own.sizes() != host.sizes() || own.storage().data() != host.storage().data()) {
      own.resize_(host.sizes());
      on_host(own).copy_(host);
    }
}

at::Tensor& set(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                at::IntArrayRef stride) {
  auto* own = self.unsafeGetTensorImpl();
  own->set_storage_keep_dtype(std::move(source));
  own->set_sizes_contiguous(size);
  own->set_storage_offset(offset);
  if (stride.size() == size.size()) own->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  std::optional<at::Tensor> b;
  if (bias.has_value() && bias->defined()) b = on_host(*bias);
  return on_device(at::convolution_symint(on_host(x), on_host(weight), b, stride, padding, dilation,
                                          transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  std::vector<c10::SymInt> bias{weight.size(transposed ? 1 : 0)};
  auto [a, b, c] = at::convolution_backward_symint(
      on_host(gradient), on_host(x), on_host(weight), c10::SymIntArrayRef(bias), stride, padding,
      dilation, transposed, output_padding, groups, wanted);
  auto back = [](const at::Tensor& t) { return t.defined() ? on_device(t) : t; };
  return {back(a), back(b), back(c)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  // Otherwise torch takes it apart, for samples that lie one after the other.
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &view);
  m.impl("_reshape_alias", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
  });
  m.impl("unfold", &at::native::unfold);
  m.impl("set_.source_Storage", [](at::Tensor& self, at::Storage source) -> at::Tensor& {
    auto size = static_cast<int64_t>(source.nbytes() / self.itemsize());
    return set(self, std::move(source), 0, {size}, {});
  });
  m.impl("set_.source_Storage_storage_offset", &set);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize_);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_FP32(FULL)
#define PROMOTED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_PROMOTE(PROMOTED)
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  m.def("waits", [] { return waited.load(); });
  m.def("manual_seed", [](uint64_t seed) { usual().set_current_seed(seed); });
  m.def("get_rng_state", [] { return usual().get_state(); });
  m.def("set_rng_state", [](const at::Tensor& state) { usual().set_state(state); });
}
