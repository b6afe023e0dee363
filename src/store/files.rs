//! Files that this program opens, creates and changes the owner of, resolved safely against foreign links.
//!
//! Guarantees: root follows only links that root owns, so that the owner of the database's directory can't make a
//! command of root's act on another file; other users follow what the system follows. An opened file is a regular one,
//! a created file is new, and the owner is changed of an opened descriptor only. The last path component is opened
//! through the directory's descriptor and follows no link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

/// Links followed while one path is resolved: the kernel's own limit.
const MAX_LINKS: usize = 40;
/// Flags to open a directory on the path.
const TRAVERSE_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// User and group of a file or directory.
pub(super) type Owner = (u32, u32);

/// A path with all links resolved: the directory, held open, and the last name in it; nothing need exist under this
/// name.
#[derive(Debug)]
pub(super) struct ResolvedPath {
    directory: Directory,
    name: OsString,
}

/// A directory, held open: operations act on this directory, even if its path changes.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl ResolvedPath {
    /// Resolves `path`.
    ///
    /// # Errors
    /// When a directory of the path is missing or can't be entered, and for root, when a link of the path is not
    /// root's.
    pub(super) fn resolve(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let mut directory = Directory::root()?;
        let mut pending = pending_components(&path);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                directory = directory.parent()?;
                continue;
            }
            match directory.stat(&name) {
                Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    directory.check_link_owner(&name, found.st_uid)?;
                    let target = directory.link(&name)?;
                    if target.is_absolute() {
                        directory = Directory::root()?;
                    }
                    pending.extend(pending_components(&target));
                }
                Err(Errno::NOENT) | Ok(_) if pending.is_empty() => return Ok(Self { directory, name }),
                Ok(_) => directory = directory.enter(&name)?,
                Err(error) => return Err(error.into()),
            }
        }
        // The path was `/`, or ended in `..`.
        Ok(Self { directory, name: ".".into() })
    }

    /// The last name with a suffix.
    pub(super) fn name_with_suffix(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The real path, for functions that take no descriptor.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    /// The file's owner; where there is no file, its directory's.
    ///
    /// # Errors
    /// When neither can be read.
    pub(super) fn owner(&self) -> io::Result<Owner> {
        match self.directory.stat(&self.name) {
            Ok(found) => Ok((found.st_uid, found.st_gid)),
            Err(Errno::NOENT) => self.directory.owner(),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory of this path.
    fn into_directory(self) -> io::Result<Directory> {
        self.directory.enter(&self.name)
    }
}

impl Directory {
    fn root() -> io::Result<Self> {
        Ok(Self { fd: rustix::fs::open("/", TRAVERSE_FLAGS, Mode::empty())?, path: "/".into() })
    }

    /// The directory that `path` leads to.
    ///
    /// # Errors
    /// As [`ResolvedPath::resolve`]; when there is none.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        ResolvedPath::resolve(path)?.into_directory()
    }

    /// The directory that `path` leads to; missing directories of the path are created and belong to `owner`.
    ///
    /// # Errors
    /// As [`Directory::open`]; when one can't be created.
    pub(super) fn create_all(path: &Path, owner: Owner) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Self::open(path) };
        let above = if above == Path::new("") { Path::new(".") } else { above };
        let above = Self::create_all(above, owner)?;
        match rustix::fs::mkdirat(&above.fd, name, Mode::from_raw_mode(0o750)) {
            Err(Errno::EXIST) => return above.enter(name),
            created => created?,
        }
        let created = above.enter(name)?;
        change_owner(&created.open_readable()?, owner)?;
        Ok(created)
    }

    fn enter(&self, name: &OsStr) -> io::Result<Self> {
        let path = if name == "." { self.path.clone() } else { self.path.join(name) };
        Ok(Self { fd: rustix::fs::openat(&self.fd, name, TRAVERSE_FLAGS, Mode::empty())?, path })
    }

    fn parent(&self) -> io::Result<Self> {
        let mut path = self.path.clone();
        path.pop();
        Ok(Self { fd: rustix::fs::openat(&self.fd, "..", TRAVERSE_FLAGS, Mode::empty())?, path })
    }

    fn stat(&self, name: &OsStr) -> rustix::io::Result<rustix::fs::Stat> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn link(&self, name: &OsStr) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.fd, name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    fn check_link_owner(&self, name: &OsStr, owner: u32) -> io::Result<()> {
        if owner == 0 || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let path = self.path.join(name);
        let problem = format!("{} is a link that user {owner} laid: root follows none but root's own", path.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
    }

    /// The real path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The regular file of this name.
    ///
    /// # Errors
    /// When there is none, it is something else, or it can't be opened.
    pub(super) fn file(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        // Without NONBLOCK, opening a pipe would wait.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o644))?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        Ok(file)
    }

    /// A new file with this mode, whatever the umask, and this owner.
    ///
    /// # Errors
    /// When this name exists; when the file can't be created.
    pub(super) fn create(&self, name: &OsStr, mode: u32, owner: Owner) -> io::Result<File> {
        let file = self.file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        change_owner(&file, owner)?;
        Ok(file)
    }

    /// Size of the file of this name, in bytes; `None` when there is none.
    ///
    /// # Errors
    /// When its metadata can't be read.
    pub(super) fn size(&self, name: &OsStr) -> io::Result<Option<u64>> {
        match self.stat(name) {
            Ok(found) => Ok(Some(u64::try_from(found.st_size).unwrap_or(0))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Device and inode number of the file of this name.
    pub(super) fn identity(&self, name: &OsStr) -> io::Result<(u64, u64)> {
        let found = self.stat(name)?;
        Ok((found.st_dev, found.st_ino))
    }

    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Gives a file a second name.
    pub(super) fn hard_link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?)
    }

    /// Removes a file; a missing file is no error.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    /// All names in the directory.
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.open_readable()?)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// Makes sure that the directory's names are on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.open_readable()?.sync_all()
    }

    /// Bytes that this user may still write on the directory's file system.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let file_system = rustix::fs::fstatvfs(&self.fd)?;
        Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
    }

    fn owner(&self) -> io::Result<Owner> {
        let found = rustix::fs::fstat(&self.fd)?;
        Ok((found.st_uid, found.st_gid))
    }

    fn open_readable(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?))
    }
}

/// The path's components that are still to be resolved, the next one last.
fn pending_components(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// Opens the regular file that `path` leads to for reading.
///
/// # Errors
/// As [`ResolvedPath::resolve`] and [`Directory::file`].
pub(super) fn open(path: &Path) -> io::Result<File> {
    let resolved = ResolvedPath::resolve(path)?;
    resolved.directory.file(&resolved.name, OFlags::RDONLY)
}

/// Changes a file's owner, so that files that root makes belong to the database's owner; for another user, who may not,
/// it does nothing.
///
/// # Errors
/// When the file has another name elsewhere; when its owner can't be changed.
pub(super) fn change_owner(file: &File, (user, group): Owner) -> io::Result<()> {
    let found = file.metadata()?;
    if (found.uid(), found.gid()) == (user, group) {
        return Ok(());
    }
    if found.is_file() && found.nlink() > 1 {
        let problem = "it has a second name elsewhere, and is not given to anybody";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    match rustix::fs::fchown(file.as_fd(), Some(Uid::from_raw(user)), Some(Gid::from_raw(group))) {
        Err(Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_resolved_through_links_to_its_real_path() {
        let folder = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(real.join("data")).unwrap();
        symlink("data", real.join("now")).unwrap();
        symlink("../now/mirror.db", real.join("data/other.db")).unwrap();
        for path in ["now/mirror.db", "data/../now/./mirror.db", "data/other.db"] {
            assert_eq!(ResolvedPath::resolve(&real.join(path)).unwrap().path(), real.join("data/mirror.db"), "{path}");
        }
        assert_eq!(ResolvedPath::resolve(&real.join("none/mirror.db")).unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink("round", real.join("round")).unwrap();
        assert!(ResolvedPath::resolve(&real.join("round")).is_err());
    }

    #[test]
    fn neither_a_link_nor_a_pipe_is_opened_as_a_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        symlink("file", folder.path().join("link")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        assert!(directory.file(OsStr::new("file"), OFlags::RDONLY).is_ok());
        for name in ["link", "pipe", "."] {
            assert!(directory.file(OsStr::new(name), OFlags::RDONLY).is_err(), "{name}");
            assert!(directory.create(OsStr::new(name), 0o600, (0, 0)).is_err(), "{name}");
        }
    }

    #[test]
    fn missing_directories_are_created() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Directory::open(folder.path()).unwrap().owner().unwrap();
        let created = Directory::create_all(&folder.path().join("a/b"), owner).unwrap();
        created.create(OsStr::new("c"), 0o640, owner).unwrap();
        assert_eq!(created.names().unwrap(), ["c"]);
        assert!(folder.path().join("a/b/c").is_file());
    }
}
