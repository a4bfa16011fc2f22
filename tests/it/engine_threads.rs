//! Engines and the cores: idle ones take none, and two of them share.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::engine_support::{Consumer, greedy, options, ready};
use vrust::engine::Engine;

const PROMPT: &[u32] = &[3, 17, 90, 41, 7];

/// Greedy tokens of four prompts at once.
fn generate(engine: &Engine) -> Vec<Vec<u32>> {
    let queue = engine.default_queue();
    let submit = |n: u32| {
        let prompt: Vec<u32> = PROMPT.iter().map(|id| id + n).collect();
        engine.submit(greedy(&prompt, 30), queue).unwrap()
    };
    let ids: Vec<_> = (0..4).map(submit).collect();
    let mut consumer = Consumer::default();
    consumer.wait(queue, &ids);
    ids.iter().map(|id| consumer.outcomes[id].only().tokens.clone()).collect()
}

#[test]
fn two_engines_at_once_generate_what_each_does_alone() {
    let names = ["llama3", "qwen3"];
    let engines = names.map(|name| ready(options(name)));
    let alone: Vec<_> = engines.iter().map(generate).collect();
    for _ in 0..3 {
        let both: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                engines.iter().map(|engine| scope.spawn(|| generate(engine))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(both, alone);
    }
}

/// An engine that sleeps at once where it waits generates the same.
#[test]
fn spinning_is_a_matter_of_time_alone() {
    let mut patient = options("llama3");
    patient.cpu_spin_us = 0;
    patient.cpu_pin_threads = true;
    assert_eq!(generate(&ready(patient)), generate(&ready(options("llama3"))));

    let mut endless = options("llama3");
    endless.cpu_spin_us = 1_000_001;
    let error = Engine::create(endless).err().unwrap();
    assert_eq!(error.detail()["field"], "cpu_spin_us");
    assert!(error.message().contains("at most 1000000, got 1000001"), "{error}");
}

/// Whoever commits the KV cache's pages changes nothing, nor does an engine that goes meanwhile.
#[test]
fn committing_pages_changes_no_token() {
    let expected = generate(&ready(options("llama3")));
    for commit in [true, false] {
        let mut options = options("llama3");
        options.cpu_commit_kv = Some(commit);
        options.kv_cache_memory_bytes = Some(1 << 30);
        drop(ready(options.clone()));
        assert_eq!(generate(&ready(options)), expected);
    }
}

/// CPU time of this whole process.
#[cfg(target_os = "linux")]
fn process_time() -> Duration {
    let text = std::fs::read_dir("/proc/self/task").unwrap().map(|task| {
        let path = task.unwrap().path().join("schedstat");
        std::fs::read_to_string(path).unwrap_or_default()
    });
    let of_task = |text: String| text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    Duration::from_nanos(text.filter_map(of_task).sum())
}

/// In a process of its own, so that nothing else counts.
#[test]
#[cfg(target_os = "linux")]
fn an_idle_engine_takes_next_to_no_time() {
    const CHILD: &str = "VRUST_TEST_IDLE";
    if std::env::var_os(CHILD).is_none() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["engine_threads::an_idle_engine_takes_next_to_no_time", "--exact"])
            .arg("--nocapture")
            .env(CHILD, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("idle for a second"), "{told}");
        return;
    }
    let engine = ready(options("llama3"));
    generate(&engine);
    // What follows the last event takes a moment.
    thread::sleep(Duration::from_millis(50));
    let before = process_time();
    thread::sleep(Duration::from_secs(1));
    let took = process_time() - before;
    println!("idle for a second: {took:?} of CPU time");
    assert!(took < Duration::from_millis(20), "{took:?}");
}
