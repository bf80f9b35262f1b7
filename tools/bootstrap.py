# @title Set-up: in Colab this installs the course and leaves its torch alone; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib import metadata
    from pathlib import Path

    def pip(*words):
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)

    found = [package for package in metadata.distributions() if package.name]
    installed = {package.name.lower(): package.version for package in found}
    torchao = installed.get("torchao", "1.0").split(".")
    if tuple(map(int, torchao[:2])) < (0, 16):
        pip("uninstall", "--yes", "torchao")  # peft refuses to work beside an older one
    # Replacing torch or numpy under a running kernel would break it.
    keep = [f"{name}=={installed[name]}" for name in ("torch", "numpy") if name in installed]
    Path("keep.txt").write_text("\n".join(keep))
    course = "loralab @ git+https://github.com/{repo}@{ref}"
    pip("install", "--constraint", "keep.txt", course)
