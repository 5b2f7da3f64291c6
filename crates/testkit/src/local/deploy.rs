//! Deploys `template.yaml`, as it is but for the folders of the binaries, to the local AWS with `sam deploy`.
//!
//! The staging folder contains the template and, at each function's `CodeUri`, its binary as `bootstrap`. That is the
//! layout that `sam build` creates, so nothing is built twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::{LocalAws, POLL_INTERVAL, clean_command, repository, tail, tool};

/// A first deployment takes about 8 s on an idle machine.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(300);
const OUTPUTS_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// Also the id of the stack's API, so that the URLs are known before the deployment. One `AppName` and `Env` each.
    pub stack_name: String,
    /// Parameters of the template. `Env`, `LiveMode`, `Architecture`, `WebhookBaseUrl` and `Waf` (which the emulator hardly
    /// supports) have local values if they are not given.
    pub parameters: BTreeMap<String, String>,
}

impl DeployOptions {
    /// A stack with these parameters.
    #[must_use]
    pub fn new(stack_name: &str, parameters: &[(&str, &str)]) -> Self {
        let parameters = parameters
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Self {
            stack_name: stack_name.to_owned(),
            parameters,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Stack {
    pub name: String,
    pub outputs: BTreeMap<String, String>,
    base_url: String,
}

impl Stack {
    /// Finds a stack that was deployed before.
    ///
    /// # Errors
    /// If no stack has that name.
    pub fn read(aws: &LocalAws, name: &str) -> Result<Self> {
        let list = [
            "list",
            "stack-outputs",
            "--stack-name",
            name,
            "--output",
            "json",
        ]
        .map(String::from);
        let text = sam(aws, name, aws.dir(), &list, OUTPUTS_TIMEOUT)?;
        let outputs: Vec<Output> = serde_json::from_str(&text)
            .with_context(|| format!("read the outputs of {name} in {text:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            outputs: outputs
                .into_iter()
                .map(|output| (output.key, output.value))
                .collect(),
            base_url: base_url(aws, name),
        })
    }

    /// The local URL of a path of the API, such as `/webhooks/stripe`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    ///
    /// # Errors
    /// If the stack has no output of that name.
    pub fn output(&self, key: &str) -> Result<&str> {
        self.outputs
            .get(key)
            .map(String::as_str)
            .ok_or_else(|| anyhow!("stack {} has no output {key}", self.name))
    }
}

/// Deploys or updates the stack; without changes it is quick.
///
/// # Errors
/// If a binary is not built or the deployment fails; the text ends with the last lines of `sam deploy`.
pub fn deploy(aws: &LocalAws, options: &DeployOptions) -> Result<Stack> {
    let name = &options.stack_name;
    let staged = stage(&aws.dir().join("stage").join(name))?;
    let base_url = base_url(aws, name);
    let mut parameters = options.parameters.clone();
    let local = [
        ("Env", "dev"),
        ("LiveMode", "false"),
        ("Architecture", host_architecture()),
        ("WebhookBaseUrl", &base_url),
        ("Waf", "false"),
    ];
    for (key, value) in local {
        parameters
            .entry(key.into())
            .or_insert_with(|| value.to_owned());
    }
    let overrides = parameters
        .iter()
        .map(|(key, value)| format!("ParameterKey={key},ParameterValue={value}"));

    let mut arguments: Vec<String> = [
        "deploy",
        "--template-file",
        "template.yaml",
        "--stack-name",
        name,
    ]
    .map(Into::into)
    .into();
    arguments.extend(
        [
            "--resolve-s3",
            "--no-confirm-changeset",
            "--no-fail-on-empty-changeset",
            "--no-progressbar",
        ]
        .map(Into::into),
    );
    arguments
        .extend(["--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"].map(Into::into));
    // The emulator reads the API's id from this tag.
    arguments.extend([
        "--tags".into(),
        format!("ms-custom-id={name}"),
        "--parameter-overrides".into(),
    ]);
    arguments.extend(overrides);
    sam(aws, name, &staged, &arguments, DEPLOY_TIMEOUT)?;

    Stack::read(aws, name)
}

/// Deletes the stack and waits until it is gone.
///
/// # Errors
/// If a resource cannot be deleted; the text ends with the last lines of `sam delete`.
pub fn delete(aws: &LocalAws, name: &str) -> Result<()> {
    let arguments = ["delete", "--stack-name", name, "--no-prompts"].map(String::from);
    sam(aws, name, aws.dir(), &arguments, DEPLOY_TIMEOUT).map(drop)
}

fn base_url(aws: &LocalAws, name: &str) -> String {
    format!("{}/_aws/execute-api/{name}/v1", aws.endpoint())
}

#[derive(Deserialize)]
struct Output {
    #[serde(rename = "OutputKey")]
    key: String,
    #[serde(rename = "OutputValue")]
    value: String,
}

/// The folder of the built function binaries: that of the running program, or its parent for a test in `deps`.
///
/// # Errors
/// If the running program's own path is unknown.
pub fn binaries_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find the running program")?;
    let dir = program.parent().unwrap_or(&program);
    Ok(if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    }
    .to_owned())
}

/// The binaries of the template's functions.
///
/// # Errors
/// If the template cannot be read.
pub fn function_binaries() -> Result<Vec<String>> {
    let template = read_template()?;
    let lines = template.lines();
    let named = lines.filter_map(|line| line.trim().strip_prefix("Binary: "));
    Ok(named.map(str::to_owned).collect())
}

fn read_template() -> Result<String> {
    let template = repository().join("template.yaml");
    fs::read_to_string(template).context("read template.yaml")
}

/// Writes the template and the binaries into `dir`, as `sam build` would.
///
/// # Errors
/// If a binary is not built, or a file cannot be written.
pub fn stage(dir: &Path) -> Result<PathBuf> {
    let binaries = binaries_dir()?;
    for function in function_binaries()? {
        let function = function.as_str();
        let target = dir.join("crates").join(function);
        fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
        let binary = binaries.join(function);
        fs::copy(&binary, target.join("bootstrap")).with_context(|| {
            format!(
                "copy {}: run `cargo build --workspace` first",
                binary.display()
            )
        })?;
    }
    let template = read_template()?;
    let staged = dir.join("template.yaml");
    fs::write(staged, point_at_binaries(&template)).context("write template.yaml")?;
    Ok(dir.to_owned())
}

/// Replaces each function's `CodeUri` by the folder of its own binary, as `sam build` does: workers share a crate.
fn point_at_binaries(template: &str) -> String {
    let mut binary = "";
    let mut written = String::new();
    for line in template.split_inclusive('\n') {
        if let Some(name) = line.trim().strip_prefix("Binary: ") {
            binary = name;
        }
        match line.split_once("CodeUri: crates/") {
            Some((indent, _)) => written += &format!("{indent}CodeUri: crates/{binary}\n"),
            None => written += line,
        }
    }
    written
}

/// Runs the SAM CLI against the local AWS and returns its standard output.
fn sam(
    aws: &LocalAws,
    stack: &str,
    dir: &Path,
    arguments: &[String],
    timeout: Duration,
) -> Result<String> {
    let command = arguments.first().map_or("", String::as_str);
    let log = aws.dir().join(format!("{command}-{stack}.log"));
    let out = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let errors = if command == "deploy" {
        Stdio::from(out.try_clone()?)
    } else {
        Stdio::null()
    };
    let call = SamCall {
        aws,
        dir,
        arguments,
        docker_host: None,
        timeout,
    };
    let status = call
        .run(out, errors)
        .with_context(|| format!("sam {command} of {stack}:\n{}", tail(&log)))?;
    if !status.success() {
        bail!(
            "sam {command} of {stack} failed ({status}):\n{}",
            tail(&log)
        );
    }
    fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))
}

/// A call of the SAM CLI with the local AWS as its AWS.
pub(super) struct SamCall<'a> {
    pub(super) aws: &'a LocalAws,
    /// The folder that paths are relative to.
    pub(super) dir: &'a Path,
    pub(super) arguments: &'a [String],
    /// The container engine, if it is not Docker at its usual place.
    pub(super) docker_host: Option<String>,
    pub(super) timeout: Duration,
}

impl SamCall<'_> {
    /// Waits for its end; an error only if it cannot be started or takes too long.
    pub(super) fn run(&self, out: fs::File, errors: Stdio) -> Result<ExitStatus> {
        let mut sam = clean_command(&tool("sam")?, self.aws.dir())
            .envs(self.aws.env())
            .env("SAM_CLI_TELEMETRY", "0")
            .env("HTTPS_PROXY", "http://127.0.0.1:1") // no look for newer versions of itself
            .envs(self.docker_host.iter().map(|host| ("DOCKER_HOST", host)))
            .current_dir(self.dir)
            .args(self.arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .context("start sam")?;
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(status) = sam.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                sam.kill()?;
                sam.wait()?;
                bail!("it took longer than {:?}", self.timeout);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The host's processor in the template's words.
pub fn host_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "x86_64"
    }
}
