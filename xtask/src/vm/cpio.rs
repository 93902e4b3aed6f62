//! Writes cpio archives in the "newc" format that the kernel unpacks as its initial file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Writing it ourselves needs no root
//! for device nodes and gives every file to root.

use std::io::{self, Read, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written to `out`.
pub struct Writer<W> {
    out: W,
    inode: u32,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Writer {
            out,
            inode: 0,
            written: 0,
        }
    }

    /// Adds a folder. Parents must have been added before, or the kernel drops the entry.
    pub fn directory(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.header(path, DIRECTORY | permissions, 0, (0, 0))
    }

    /// Adds a regular file of exactly `length` bytes read from `content`.
    ///
    /// # Errors
    /// `UnexpectedEof` if `content` is shorter, `InvalidInput` if it does not fit the format (4 GiB).
    pub fn file(
        &mut self,
        path: &str,
        permissions: u32,
        length: u64,
        content: impl Read,
    ) -> io::Result<()> {
        let size = u32::try_from(length).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a cpio archive holds files below 4 GiB",
            )
        })?;
        self.header(path, REGULAR | permissions, size, (0, 0))?;
        let copied = io::copy(&mut content.take(length), &mut self.out)?;
        if copied != length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} got shorter while it was read: {copied} of {length} bytes"),
            ));
        }
        self.written += copied;
        self.pad()
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let length = u32::try_from(target.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "link target too long"))?;
        self.header(path, SYMLINK | 0o777, length, (0, 0))?;
        self.put(target.as_bytes())?;
        self.pad()
    }

    /// Adds a character device node.
    pub fn character_device(
        &mut self,
        path: &str,
        permissions: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        self.header(path, CHARACTER_DEVICE | permissions, 0, device)
    }

    /// Ends the archive and gives back the output and the archive's length in bytes.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, (0, 0))?;
        self.out.flush()?;
        Ok((self.out, self.written))
    }

    fn header(
        &mut self,
        path: &str,
        mode: u32,
        size: u32,
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        if name.is_empty() || name.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path:?} is no name for an archive entry"),
            ));
        }
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let name_length = name.len() as u32 + 1;
        let (uid, gid, mtime, dev) = (0, 0, 0, 0);
        let fields = [
            self.inode,
            mode,
            uid,
            gid,
            links,
            mtime,
            size,
            dev,
            dev,
            major,
            minor,
            name_length,
            0,
        ];
        self.inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Headers and contents both start at multiples of four bytes.
    fn pad(&mut self) -> io::Result<()> {
        let rest = (self.written % 4) as usize;
        if rest == 0 {
            Ok(())
        } else {
            self.put(&[0; 3][..4 - rest])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_bytes_the_format_demands() {
        let mut archive = Writer::new(Vec::new());
        archive.directory("/etc", 0o755).unwrap();
        archive.file("etc/x", 0o644, 5, &b"hello"[..]).unwrap();
        let (bytes, length) = archive.finish().unwrap();
        assert_eq!(bytes.len() as u64, length);
        let text = String::from_utf8(bytes).unwrap();
        let expected = concat!(
            "070701",
            "00000000",
            "000041ed",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "etc\0",
            "\0\0",
            "070701",
            "00000001",
            "000081a4",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000006",
            "00000000",
            "etc/x\0",
            "hello\0\0\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0",
            "\0\0\0",
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn links_and_devices_carry_target_and_numbers() {
        let mut archive = Writer::new(Vec::new());
        archive.symlink("lib", "usr/lib").unwrap();
        archive
            .character_device("dev/console", 0o600, (5, 1))
            .unwrap();
        let (bytes, _) = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("lib\0\0\0usr/lib\0"), "{text:?}");
        let console = text.find("dev/console").unwrap();
        // rdevmajor and rdevminor stand 32 and 24 characters before the end of the header.
        assert_eq!(&text[console - 32..console - 16], "0000000500000001");
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let mut archive = Writer::new(Vec::new());
        let error = archive.file("x", 0o644, 9, &b"short"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn names_the_kernel_would_misread_are_refused() {
        let mut archive = Writer::new(Vec::new());
        assert!(archive.directory("/", 0o755).is_err());
        assert!(archive.directory("a\0b", 0o755).is_err());
    }
}
