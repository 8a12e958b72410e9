//! Many CNI commands at once, each on a host of a lab, as its container runtime would execute them; how long each took.

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Reads `{"parallel": N, "jobs": [{"host": NETNS, "program": FILE, "env": {…}, "stdin": {…}}]}`, does the jobs in their
/// order, N at a time, and prints a list of `{"ms": …, "code": …, "stdout": …, "stderr": …}`.
pub fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let plan: Value = serde_json::from_str(&text)?;
    let jobs = plan["jobs"].as_array().context("no jobs")?;
    let parallel = plan["parallel"].as_u64().context("no number of jobs at a time")?;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![Value::Null; jobs.len()]);
    let work = || -> Result<()> {
        while let Some((at, job)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, jobs.get(at)?)))
        {
            let outcome = execute(job)?;
            let mut done = done.lock().map_err(|_| anyhow!("a thread panicked"))?;
            done[at] = outcome;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    let done = done.into_inner().map_err(|_| anyhow!("a thread panicked"))?;
    println!("{}", Value::Array(done));
    Ok(())
}

fn execute(job: &Value) -> Result<Value> {
    let text = |key: &str| job[key].as_str().with_context(|| format!("a job has no {key}"));
    let host = text("host")?;
    let netns = File::open(host).with_context(|| host.to_owned())?;
    // This thread's, and that of the process that it starts.
    setns(&netns, CloneFlags::CLONE_NEWNET)?;
    let env = job["env"].as_object().into_iter().flatten();
    let began = Instant::now();
    let mut child = Command::new(text("program")?)
        .envs(env.map(|(key, value)| (key, value.as_str().unwrap_or_default())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(job["stdin"].to_string().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(json!({
        "ms": ms, "code": output.status.code().unwrap_or(-1), "stdout": text(&output.stdout), "stderr": text(&output.stderr)
    }))
}
