//! Enough HTTP/1.1 to count the responses of a keep-alive connection: a head, a Content-Length.

use super::tally::{ErrorKind, Failure};

const HEAD_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// Takes the bytes of one response at a time.
#[derive(Debug, Default)]
pub(crate) struct ResponseReader {
    /// The part of the head that came so far, when it came in pieces.
    head: Vec<u8>,
    /// Once the head is complete: bytes of the body that are missing, and whether the server will
    /// close after it.
    body: Option<(u64, bool)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Complete { server_closes: bool },
}

impl ResponseReader {
    /// `body_bytes`: the length that the body must have, if known.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        body_bytes: Option<u64>,
    ) -> Result<Progress, Failure> {
        let body_part = match self.body {
            Some(_) => bytes.len(),
            None if self.head.is_empty() => match self.parse(bytes, body_bytes)? {
                Some(head_len) => bytes.len() - head_len,
                None => {
                    self.head.extend_from_slice(bytes);
                    return Ok(Progress::More);
                }
            },
            None => {
                let mut head = std::mem::take(&mut self.head);
                head.extend_from_slice(bytes);
                match self.parse(&head, body_bytes)? {
                    Some(head_len) => head.len() - head_len,
                    None => {
                        self.head = head;
                        return Ok(Progress::More);
                    }
                }
            }
        };
        let Some((left, server_closes)) = &mut self.body else {
            return Ok(Progress::More);
        };
        if body_part as u64 > *left {
            let excess = body_part as u64 - *left;
            return Err((
                ErrorKind::ExcessBytes,
                format!("{excess} bytes after the end of the response"),
            ));
        }
        *left -= body_part as u64;
        if *left > 0 {
            return Ok(Progress::More);
        }
        let server_closes = *server_closes;
        *self = Self::default();
        Ok(Progress::Complete { server_closes })
    }

    /// The length of the head if it is complete; then `self.body` is set.
    fn parse(&mut self, head: &[u8], body_bytes: Option<u64>) -> Result<Option<usize>, Failure> {
        let malformed = |what: String| Err((ErrorKind::HttpMalformed, what));
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let head_len = match response.parse(head) {
            Ok(httparse::Status::Complete(n)) => n,
            Ok(httparse::Status::Partial) if head.len() > HEAD_MAX => {
                return malformed(format!("a head of more than {HEAD_MAX} bytes"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(e) => return malformed(format!("response head: {e}")),
        };
        let code = response.code.unwrap_or(0);
        if !(200..300).contains(&code) {
            return Err((ErrorKind::HttpStatus, format!("status {code}")));
        }
        let value = |name: &str| {
            let of_name = |h: &&httparse::Header| h.name.eq_ignore_ascii_case(name);
            let header = response.headers.iter().find(of_name)?;
            std::str::from_utf8(header.value).ok().map(str::trim)
        };
        let Some(length) = value("content-length").and_then(|v| v.parse::<u64>().ok()) else {
            return malformed(format!("status {code} without a Content-Length"));
        };
        if let Some(expected) = body_bytes.filter(|&n| n != length) {
            return malformed(format!("a body of {length} bytes instead of {expected}"));
        }
        let closes = value("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        self.body = Some((length, closes));
        Ok(Some(head_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\nConnection: Close\r\n\r\nhello";

    #[test]
    fn a_response_in_any_two_pieces_is_one_response() {
        for cut in 0..RESPONSE.len() {
            let mut reader = ResponseReader::default();
            let (a, b) = RESPONSE.split_at(cut);
            assert_eq!(reader.feed(a, Some(5)), Ok(Progress::More), "cut at {cut}");
            let done = Ok(Progress::Complete {
                server_closes: true,
            });
            assert_eq!(reader.feed(b, Some(5)), done, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_the_expected_response_is_an_error_of_its_kind() {
        let kind = |bytes: &[u8], length| {
            let mut reader = ResponseReader::default();
            reader.feed(bytes, length).unwrap_err().0
        };
        let longer = [RESPONSE, b"!"].concat();
        assert_eq!(kind(&longer, None), ErrorKind::ExcessBytes);
        assert_eq!(kind(RESPONSE, Some(6)), ErrorKind::HttpMalformed);
        assert_eq!(
            kind(b"HTTP/1.1 200 OK\r\n\r\n", None),
            ErrorKind::HttpMalformed
        );
        assert_eq!(kind(b"SSH-2.0-x\r\n", None), ErrorKind::HttpMalformed);
        let refused = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(kind(refused, None), ErrorKind::HttpStatus);
    }
}
