//! Runs functions with `sam local invoke`, in containers that reach the local AWS and other servers of this machine.
//!
//! The template is `template.yaml` as `deploy` stages it. At each function's `CodeUri`, `bootstrap` starts the relay
//! (`relay`), which starts the function's binary; apart from that a container is as SAM makes it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::LocalAws;
use super::containers::ContainerEngine;
use super::deploy::{SamCall, function_binaries, host_architecture, stage};
use super::relay::serve_ports;

/// One invocation takes about 5 s; with Docker, the first one downloads AWS's image.
const INVOKE_TIMEOUT: Duration = Duration::from_secs(300);

/// Starts the relay, which starts the function.
const BOOTSTRAP: &str = "#!/bin/sh\nexec /var/task/relay relay /var/task/function\n";

/// Functions ready to be invoked.
#[derive(Debug)]
pub struct SamInvoker {
    engine: ContainerEngine,
    /// Whether SAM need not ask a registry for the image any more.
    has_image: AtomicBool,
    folder: PathBuf,
    /// Last, so that it ends last: the other files are in its folder.
    aws: Arc<LocalAws>,
}

impl SamInvoker {
    /// Stages the functions. They reach `ports` of this machine's 127.0.0.1, and get `variables` in the form of
    /// `events/env.json`. `relay` is a program that calls `run_with_relay` if its arguments are `relay` and a program.
    ///
    /// # Errors
    /// If a binary is not built, or a file cannot be written.
    pub fn prepare(
        aws: Arc<LocalAws>,
        engine: ContainerEngine,
        ports: &[u16],
        variables: &Value,
        relay: &Path,
    ) -> Result<Self> {
        let folder = stage(&aws.dir().join("invoke"))?;
        for function in function_binaries()? {
            let code = folder.join("crates").join(function);
            let bootstrap = code.join("bootstrap");
            fs::rename(&bootstrap, code.join("function"))?;
            fs::copy(relay, code.join("relay"))?;
            fs::write(&bootstrap, BOOTSTRAP)?;
            fs::set_permissions(&bootstrap, fs::Permissions::from_mode(0o755))?;
            serve_ports(&code, ports)?;
        }
        fs::write(folder.join("env.json"), format!("{variables:#}"))?;
        Ok(Self {
            has_image: engine.has_own_image().into(),
            engine,
            folder,
            aws,
        })
    }

    /// Invokes a function by its logical id and returns its answer, an error's JSON included.
    ///
    /// # Errors
    /// If SAM fails or the container answers no JSON; the text ends with what SAM and the function wrote.
    pub fn invoke(&self, function: &str, event: &Value) -> Result<Value> {
        let log = self.folder.join("invoke.log");
        let answer_file = self.folder.join("answer.json");
        fs::write(self.folder.join("event.json"), event.to_string())?;
        let architecture = format!("Architecture={}", host_architecture());
        let mut arguments: Vec<String> = [
            "local",
            "invoke",
            function,
            "--template",
            "template.yaml",
            "--event",
            "event.json",
            "--env-vars",
            "env.json",
            "--parameter-overrides",
            &architecture,
            // They have no default.
            "Env=dev",
            "LiveMode=false",
        ]
        .map(str::to_owned)
        .into();
        if self.has_image.load(Ordering::Relaxed) {
            arguments.push("--skip-pull-image".to_owned());
        }
        let status = SamCall {
            aws: &self.aws,
            dir: &self.folder,
            arguments: &arguments,
            docker_host: self.engine.docker_host(),
            timeout: INVOKE_TIMEOUT,
        }
        .run(
            fs::File::create(&answer_file)?,
            Stdio::from(fs::File::create(&log)?),
        )
        .with_context(|| self.log())?;
        let text = fs::read_to_string(&answer_file)?;
        let last = text.lines().next_back().unwrap_or_default();
        match serde_json::from_str(last) {
            Ok(answer) => {
                self.has_image.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Err(_) => bail!(
                "sam local invoke of {function} ({status}) gave no JSON: {text}\n{}",
                self.log()
            ),
        }
    }

    /// What SAM and the function wrote at the last invocation.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.join("invoke.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).trim_end().to_owned()
    }
}
