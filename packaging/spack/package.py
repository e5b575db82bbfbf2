from spack.package import *


class PyOptplug(PythonPackage):
    """PyTorch's optimizers for programs that are not PyTorch programs, through a C library."""

    pypi = "optplug/optplug-0.1.0.tar.gz"

    license("MIT")

    # The checksum comes with the release: spack checksum py-optplug
    version("0.1.0")

    depends_on("c", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("py-scikit-build-core@0.11:", type="build")
    depends_on("python@3.10:", type=("build", "link", "run"))
    depends_on("py-cffi@1.17:", type=("build", "run"))
    depends_on("py-torch@2.11:", type="run")
    depends_on("py-numpy@1.26:", type="run")

    def setup_run_environment(self, env):
        package = join_path(python_platlib, "optplug")
        env.prepend_path("CMAKE_PREFIX_PATH", package)
        env.prepend_path("PKG_CONFIG_PATH", join_path(package, "lib", "pkgconfig"))
        # The environment's Python, which sees py-torch through the view or the loaded modules.
        env.set("OPTPLUG_PYTHON", self.spec["python"].command.path)
