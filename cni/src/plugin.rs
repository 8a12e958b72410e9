//! The skeleton of a plugin: it reads the environment and stdin, validates the request, calls the verb, and prints
//! exactly one JSON document or, for the verbs that have no result, nothing.

use crate::config::{decode_object, read_document};
use crate::error::{Error, code};
use crate::request::{Command, Request, check_environment};
use crate::types::AddResult;
use crate::version::Version;
use serde_json::{Map, Value, json};
use std::any::Any;
use std::io::{self, IsTerminal, Read, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;
use std::sync::OnceLock;

/// A CNI plugin. There are no default verbs: every plugin says what each of them does.
pub trait Plugin {
    /// The plugin's name, as configurations have it in `type`.
    fn name(&self) -> &'static str;

    /// The versions of the specification that it supports.
    fn versions(&self) -> &'static [Version] {
        Version::ALL
    }

    /// What is printed for a person who runs the plugin by hand.
    fn about(&self) -> String {
        format!("CNI plugin {}", self.name())
    }

    /// ADD: attach the container. Before it makes anything it should see to it that the configuration's version can
    /// say the result ([`AddResult::check_version`]).
    ///
    /// # Errors
    /// When the container could not be attached; nothing may be left behind then.
    fn add(&self, request: &Request) -> Result<AddResult, Error>;

    /// DEL: detach the container. What is missing is no error.
    ///
    /// # Errors
    /// When something could not be removed.
    fn del(&self, request: &Request) -> Result<(), Error>;

    /// CHECK: is the attachment as ADD left it?
    ///
    /// # Errors
    /// When it is not.
    fn check(&self, request: &Request) -> Result<(), Error>;

    /// GC: remove what belongs to no valid attachment. The list of those is there, it has been validated.
    ///
    /// # Errors
    /// When something could not be removed; the rest should have been all the same.
    fn gc(&self, request: &Request) -> Result<(), Error>;

    /// STATUS: could an ADD be served now?
    ///
    /// # Errors
    /// When it could not: codes 50 and 51.
    fn status(&self, request: &Request) -> Result<(), Error>;
}

/// The version of the configuration, for the hook that reports a panic.
static SPOKEN: OnceLock<Version> = OnceLock::new();

/// The `main` of a plugin's executable.
///
/// Without `CNI_COMMAND`, when a person seems to have started it (with arguments, or on a terminal), it says on stderr
/// what it is.
pub fn main(plugin: &dyn Plugin) -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let by_hand = || std::env::args_os().len() > 1 || io::stdin().is_terminal();
    if env("CNI_COMMAND").is_none_or(|command| command.is_empty()) && by_hand() {
        let versions: Vec<&str> = plugin.versions().iter().map(|version| version.as_str()).collect();
        eprintln!("{}\nCNI protocol versions supported: {}", plugin.about(), versions.join(", "));
        return ExitCode::SUCCESS;
    }
    if cfg!(panic = "abort") {
        std::panic::set_hook(Box::new(report_panic));
    }
    let stdin = io::stdin();
    let code = if stdin.is_terminal() && env("CNI_COMMAND").as_deref() == Some("VERSION") {
        run(plugin, env, io::empty(), io::stdout())
    } else {
        run(plugin, env, stdin.lock(), io::stdout())
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Serves one request, and returns the exit status: 0 or 1.
///
/// A panic of the plugin becomes an error document with code 100.
pub fn run(
    plugin: &dyn Plugin,
    env: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    mut stdout: impl Write,
) -> i32 {
    // Until the configuration has told its version, errors are printed in the newest.
    let mut version = Version::CURRENT;
    let served = std::panic::catch_unwind(AssertUnwindSafe(|| serve(plugin, &env, stdin, &mut version)));
    let served = served.unwrap_or_else(|panic| Err(panicked(&panic_text(&*panic))));
    let (document, status) = match served {
        Ok(None) => return 0,
        Ok(Some(document)) => (document, 0),
        Err(error) => (error.to_json(version), 1),
    };
    match writeln!(stdout, "{document}").and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(error) => {
            eprintln!("{}: cannot write to stdout: {error}", plugin.name());
            1
        }
    }
}

/// Everything but the printing. `version` is set as soon as it is known.
fn serve(
    plugin: &dyn Plugin,
    env: &dyn Fn(&str) -> Option<String>,
    stdin: impl Read,
    version: &mut Version,
) -> Result<Option<Value>, Error> {
    let command = env("CNI_COMMAND").unwrap_or_default();
    if command.is_empty() {
        return Err(Error::environment(&["CNI_COMMAND"], "required, but not set"));
    }
    let command: Command = command.parse()?;
    if command == Command::Version {
        return Ok(Some(say_version(plugin, stdin)));
    }
    // Before stdin: whoever forgot a variable by hand should not have to type a configuration to be told.
    check_environment(command, env)?;
    let document = read_document(stdin, "the network configuration")?;
    let raw = decode_object(&document, "the network configuration")?;
    *version = version_said(&raw).and_then(|text| text.parse().ok()).unwrap_or(Version::CURRENT);
    // Only the first one counts, and a process of its own serves only one.
    let _ = SPOKEN.set(*version);
    let request = Request::new(command, env, raw, plugin.versions())?;
    match command {
        Command::Add => {
            let result = plugin.add(&request)?;
            let document = result.to_json(request.conf.version);
            // A result that cannot be told is a failed ADD, after which nothing may be left.
            document.map(Some).inspect_err(|_| drop(plugin.del(&request)))
        }
        Command::Del => plugin.del(&request).map(|()| None),
        Command::Check => plugin.check(&request).map(|()| None),
        Command::Gc => plugin.gc(&request).map(|()| None),
        Command::Status => plugin.status(&request).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// The document's `cniVersion` in its own words, 0.1.0 when it says nothing; `None` when it is no string.
fn version_said(raw: &Map<String, Value>) -> Option<&str> {
    match raw.get("cniVersion") {
        None | Some(Value::Null) => Some(""),
        Some(said) => said.as_str(),
    }
}

/// VERSION echoes the runtime's `cniVersion`. It must work with anything on stdin, so what cannot be read is passed over.
fn say_version(plugin: &dyn Plugin, stdin: impl Read) -> Value {
    let raw = read_document(stdin, "stdin").and_then(|document| decode_object(&document, "stdin"));
    let raw = raw.unwrap_or_default();
    let said = version_said(&raw).filter(|said| !said.is_empty()).unwrap_or(Version::CURRENT.as_str());
    let supported: Vec<&str> = plugin.versions().iter().map(|version| version.as_str()).collect();
    json!({"cniVersion": said, "supportedVersions": supported})
}

fn panicked(text: &str) -> Error {
    Error::new(code::PLUGIN, "the plugin failed unexpectedly; this is a defect of the plugin").details(text)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panic").to_owned()
}

/// Where a panic aborts the process, nothing can be caught: the hook is the last place to print the document.
fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let error = panicked(&format!("{}{place}", panic_text(info.payload())));
    let version = SPOKEN.get().copied().unwrap_or(Version::CURRENT);
    let mut stdout = io::stdout();
    // Nobody is left to tell when this fails; the exit status says enough.
    let _ = writeln!(stdout, "{}", error.to_json(version)).and_then(|()| stdout.flush());
    std::process::exit(1);
}
