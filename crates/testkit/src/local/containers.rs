//! The container engine for `sam local invoke`: Docker if its daemon answers, otherwise podman.
//!
//! With Docker, SAM takes AWS's own image. podman gets an image of this machine's C library, made in a second
//! (`tests/tools/container_image.sh`), because it is also for machines that reach no image registry. Its images and
//! containers are in a folder of their own, and the service that speaks Docker's protocol ends with this value.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::deploy::host_architecture;
use super::{POLL_INTERVAL, START_TIMEOUT, clean_command, repository, tail};

const NOTHING_INSTALLED: &str =
    "no container engine: start Docker, or install podman (as root: apt-get install podman runc)";

/// crun refuses machines whose cgroups are a mixture of v1 and v2, so runc; cgroupfs needs no systemd. The default limits
/// of podman are above what a container's root may set.
const PODMAN_SETTINGS: &str = r#"[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// A container engine that SAM can use.
#[derive(Debug)]
pub enum ContainerEngine {
    /// At this `DOCKER_HOST`, if it is not the default one.
    Docker(Option<String>),
    Podman(PodmanService),
}

/// `podman system service`, with settings and storage in its own folder.
#[derive(Debug)]
pub struct PodmanService {
    socket: PathBuf,
    process: Child,
}

impl ContainerEngine {
    /// Finds Docker, or starts podman with its files in `folder` and an image for binaries such as `binary`.
    ///
    /// # Errors
    /// If neither is installed, or podman does not start; the text says what to install.
    pub fn find(folder: &Path, binary: &Path) -> Result<Self> {
        let host = std::env::var_os("DOCKER_HOST").and_then(|host| host.into_string().ok());
        let asked = Command::new("docker")
            .args(["version", "--format", "{{.Server.Version}}"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if asked.is_ok_and(|status| status.success()) {
            return Ok(Self::Docker(host));
        }
        PodmanService::start(folder, binary).map(Self::Podman)
    }

    /// What it is, for the report.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Docker(_) => "Docker, with the image of AWS",
            Self::Podman(_) => "podman, with an image of this machine's C library",
        }
    }

    /// The value of `DOCKER_HOST` for SAM.
    pub(super) fn docker_host(&self) -> Option<String> {
        match self {
            Self::Docker(host) => host.clone(),
            Self::Podman(podman) => Some(format!("unix://{}", podman.socket.display())),
        }
    }

    /// Whether the image was made here, so that SAM need not ask a registry for it.
    pub(super) fn has_own_image(&self) -> bool {
        matches!(self, Self::Podman(_))
    }
}

impl PodmanService {
    fn start(folder: &Path, binary: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{0}/run\"\ngraphroot = \"{0}/images\"\n",
            folder.display()
        );
        fs::write(folder.join("storage.conf"), storage)?;
        fs::write(folder.join("containers.conf"), PODMAN_SETTINGS)?;
        for needed in ["podman", "runc"] {
            let found = podman_command(needed, folder)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            match found {
                Err(error) if error.kind() == ErrorKind::NotFound => bail!(NOTHING_INSTALLED),
                found => found.with_context(|| format!("run {needed}"))?,
            };
        }
        import_image(folder, binary)?;

        let (socket, log) = (folder.join("podman.sock"), folder.join("podman.log"));
        let out = fs::File::create(&log)?;
        // It ends by itself after 10 minutes without a call, should this process be killed.
        let process = podman_command("podman", folder)
            .args(["system", "service", "--time", "600"])
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("start podman")?;
        let mut service = Self { socket, process };
        let deadline = Instant::now() + START_TIMEOUT;
        while !service.socket.exists() {
            if let Some(status) = service.process.try_wait()? {
                bail!("podman ended at its start ({status}):\n{}", tail(&log));
            }
            if Instant::now() > deadline {
                bail!(
                    "podman did not start within {START_TIMEOUT:?}:\n{}",
                    tail(&log)
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(service)
    }
}

impl Drop for PodmanService {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn podman_command(program: &str, folder: &Path) -> Command {
    let mut command = clean_command(Path::new(program), folder);
    command
        .env("CONTAINERS_CONF", folder.join("containers.conf"))
        .env("CONTAINERS_STORAGE_CONF", folder.join("storage.conf"));
    command
}

/// Imports the image under the name that SAM looks for.
fn import_image(folder: &Path, binary: &Path) -> Result<()> {
    let mut files = Command::new(repository().join("tests/tools/container_image.sh"))
        .arg(binary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start container_image.sh")?;
    let tar = files.stdout.take().context("read the image's files")?;
    let log = folder.join("import.log");
    let out = fs::File::create(&log)?;
    let image = format!(
        "public.ecr.aws/lambda/provided:al2023-{}",
        host_architecture()
    );
    let imported = podman_command("podman", folder)
        .args(["import", "-", &image])
        .stdin(tar)
        .stdout(out.try_clone()?)
        .stderr(out)
        .status()
        .context("start podman")?;
    if !files.wait()?.success() {
        bail!("container_image.sh failed, see above");
    }
    if !imported.success() {
        bail!("podman import failed ({imported}):\n{}", tail(&log));
    }
    Ok(())
}
