//! The kernel of the emulated machine, and the small file system that it starts from.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::tried;

/// What the machine is started from.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

/// The package that depends on the current kernel. The one for clouds has no Soft-RoCE.
const PACKAGE: &str = "linux-image-amd64";

/// What the kernel needs as modules. Soft-RoCE asks for `crc32` by that name when it is set up, which
/// its dependencies do not say: hence `crc32_generic`, and `modprobe` where the kernel looks for it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_rng",
    "virtio_blk",
    "virtio_net",
    "9pnet_virtio",
    "9p",
    "overlay",
    "ext4",
    "veth",
    "crc32_generic",
    "crc32c_generic",
    "ib_uverbs",
    "rdma_rxe",
];

/// What busybox is called as.
const APPLETS: &[&str] =
    &["sh", "mount", "modprobe", "ip", "mkdir", "cat", "echo", "chroot", "poweroff", "ln"];

/// The first program of the machine.
const INIT: &str = include_str!("init.sh");

/// The kernel and its file system, made when they are not there yet; or why there are none.
pub(super) fn prepare(folder: &Path) -> anyhow::Result<Result<Image, String>> {
    fs::create_dir_all(folder)?;
    let kernel = folder.join("vmlinuz");
    let initramfs = folder.join("initramfs.cpio");
    let tree = folder.join("kernel");
    if !kernel.exists() {
        if let Err(why) = unpack_kernel(folder, &tree)? {
            return Ok(Err(why));
        }
        let from = only_entry(&tree.join("boot"), "vmlinuz-")?;
        // Last, so that a run which was interrupted begins anew.
        fs::copy(from, &kernel)?;
    }
    let image = Image { kernel, initramfs };
    Ok(pack(&tree, folder, &image.initramfs)?.map(|()| image))
}

/// Downloads the kernel's package and unpacks it; nothing is installed.
fn unpack_kernel(folder: &Path, tree: &Path) -> anyhow::Result<Result<(), String>> {
    let depends = match tried(Command::new("apt-cache").args(["depends", PACKAGE]))? {
        Ok(depends) => depends,
        Err(why) => return Ok(Err(why)),
    };
    let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let Some(name) = name else { return Ok(Err(format!("apt knows no {PACKAGE}"))) };
    let mut download = Command::new("timeout");
    download.args(["300", "apt-get", "download", "-qq", name]).current_dir(folder);
    if let Err(why) = tried(&mut download)? {
        return Ok(Err(format!("the kernel cannot be downloaded ({why})")));
    }
    let package = only_entry(folder, name)?;
    let done = tried(Command::new("dpkg-deb").arg("-x").arg(&package).arg(tree))?;
    fs::remove_file(package)?;
    Ok(done.map(drop))
}

/// The entry of a folder whose name begins so.
fn only_entry(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has no {prefix}", folder.display())
}

/// Packs busybox, the modules and the first program.
fn pack(tree: &Path, folder: &Path, into: &Path) -> anyhow::Result<Result<(), String>> {
    let root = folder.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for dir in ["bin", "sbin", "proc", "sys", "dev", "run", "lower", "upper", "newroot"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    symlink("../bin/busybox", root.join("sbin/modprobe"))?;
    fs::write(root.join("init"), INIT)?;
    tried(Command::new("chmod").arg("755").arg(root.join("init")))?.ok();
    if let Err(why) = copy_modules(tree, &root)? {
        return Ok(Err(why));
    }
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . -print0 | cpio --null --create --format=newc --quiet > \"$0\""]);
    Ok(tried(cpio.arg(into).current_dir(&root))?.map(drop))
}

/// Copies the modules with all that they depend on.
fn copy_modules(tree: &Path, root: &Path) -> anyhow::Result<Result<(), String>> {
    let modules = only_entry(&tree.join("lib/modules"), "")?;
    let version = modules.file_name().context("a version")?.to_string_lossy().into_owned();
    let depmod = |base: &Path| tried(Command::new("depmod").arg("-b").arg(base).arg(&version));
    if let Err(why) = depmod(tree)? {
        return Ok(Err(why));
    }
    let mut needed = BTreeSet::new();
    for module in MODULES {
        let mut show = Command::new("modprobe");
        show.arg("-d").arg(tree).args(["-S", &version, "--show-depends", module]);
        // What is built into the kernel has no file.
        let shown = tried(&mut show)?.unwrap_or_default();
        let file = |line: &str| line.strip_prefix("insmod ").map(|rest| rest.trim().to_owned());
        needed.extend(shown.lines().filter_map(file));
    }
    let tree = tree.canonicalize()?;
    for file in &needed {
        let from = Path::new(file).canonicalize()?;
        let inside = from.strip_prefix(&tree).context("a module outside its tree")?;
        // Where `lib` is a link to `usr/lib`, the path has one part more.
        let to = root.join(inside.strip_prefix("usr").unwrap_or(inside));
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::copy(&from, &to)?;
    }
    for list in ["modules.order", "modules.builtin"] {
        let to = root.join("lib/modules").join(&version).join(list);
        fs::copy(modules.join(list), to)?;
    }
    Ok(depmod(root)?.map(drop))
}
