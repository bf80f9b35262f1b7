# In Colab this installs the course's package and leaves Colab's torch and numpy alone; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib import metadata
    from pathlib import Path

    def pip(*words):
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)

    installed = {found.name.lower(): found.version for found in metadata.distributions() if found.name}
    if "torchao" in installed and tuple(map(int, installed["torchao"].split(".")[:2])) < (0, 16):
        pip("uninstall", "--yes", "torchao")  # peft refuses to work beside an older one
    keep = [f"{name}=={installed[name]}\n" for name in ("torch", "numpy") if name in installed]
    Path("keep.txt").write_text("".join(keep))  # replacing these under a running kernel would break it
    pip("install", "--constraint", "keep.txt", "loralab @ git+https://github.com/{repo}@{ref}")
