package viewersession

import (
	"io"
	"net/http"
	"strings"
)

// carrier is where a token travels: the names of the header and the cookie,
// either of which may be empty. What clients send under these names never
// reaches the next handler.
type carrier struct {
	header string // canonical
	cookie string
}

// strip removes whatever the client sent under the carrier's names. It runs
// before anything else, on every request that reaches the handler, so that no
// branch (another path, an error, on_error pass) can let a client's value
// through to an app that trusts the name.
func (c carrier) strip(r *http.Request) {
	var connection []string
	for name, values := range r.Header {
		if name == "Connection" {
			connection = values
		}
		// CGI, WSGI and Rack apps see X_Viewer_Session, X.Viewer.Session
		// and X-Viewer-Session as one and the same variable. Most names
		// differ in length, which is seen here without a call.
		if len(name) == len(c.header) && foldsToHeader(name, c.header) && !visitOf(r).carriesHeader(name) {
			delete(r.Header, name)
		}
	}
	if c.cookie != "" && mentionsCookie(r.Header, c.cookie) && !visitOf(r).carriesCookie(c.cookie) {
		stripCookie(r.Header, c.cookie)
	}
	if len(connection) > 0 {
		// A header named in Connection is dropped by the next proxy as
		// hop-by-hop. A client that names ours would get our token removed,
		// and could make the app fall back to something weaker.
		c.stripConnection(r.Header, connection)
	}
	if r.Trailer != nil {
		c.stripTrailer(r.Trailer)
		if r.Body != nil {
			// Trailers are filled in when the body has been read.
			r.Body = &trailerStripper{ReadCloser: r.Body, carrier: c, trailer: r.Trailer}
		}
	}
}

// foldsToHeader reports whether name is an alias of the canonical header name:
// equal but for case, and for any other punctuation in the place of a hyphen.
// Most servers fold "_", some every character that is no letter or digit.
func foldsToHeader(name, canonical string) bool {
	if len(name) != len(canonical) {
		return false
	}
	for i := 0; i < len(name); i++ {
		if foldHeaderByte(name[i]) != foldHeaderByte(canonical[i]) {
			return false
		}
	}
	return true
}

func foldHeaderByte(c byte) byte {
	switch {
	case !isAlphanumeric(c):
		return '-'
	case c >= 'A' && c <= 'Z':
		return c + 'a' - 'A'
	default:
		return c
	}
}

// hides reports whether name, as a header's name, is one that must not be
// named in Connection or sent as a trailer.
func (c carrier) hides(name string) bool {
	return c.header != "" && foldsToHeader(name, c.header) ||
		c.cookie != "" && foldsToHeader(name, "Cookie")
}

func (c carrier) stripConnection(header http.Header, lines []string) {
	var kept []string
	changed := false
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.TrimSpace(option)
			if c.hides(option) {
				changed = true
				continue
			}
			kept = append(kept, option)
		}
	}
	switch {
	case !changed:
	case len(kept) == 0:
		delete(header, "Connection")
	default:
		header["Connection"] = []string{strings.Join(kept, ", ")}
	}
}

func (c carrier) stripTrailer(trailer http.Header) {
	for name := range trailer {
		if c.hides(name) {
			delete(trailer, name)
		}
	}
}

// trailerStripper removes the carrier's names from the request's trailers at
// the moment when they become known, before the reader of the body sees them.
type trailerStripper struct {
	io.ReadCloser
	carrier carrier
	trailer http.Header
}

// Read implements io.Reader.
func (t *trailerStripper) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err != nil {
		t.carrier.stripTrailer(t.trailer)
	}
	return n, err
}

// stripCookie removes every cookie that an app could take for the one named,
// from the raw text of every Cookie line: Request.Cookies hides malformed pairs
// that are forwarded all the same, and most apps take the first of duplicates.
// Text that is not ours stays as it is.
func stripCookie(header http.Header, name string) {
	if !mentionsCookie(header, name) {
		return
	}
	lines := header["Cookie"]
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		pairs := strings.Split(line, ";")
		left := pairs[:0]
		for _, pair := range pairs {
			if pair = cutOurs(pair, name); strings.Trim(pair, " \t") != "" {
				left = append(left, pair)
			}
		}
		if text := strings.TrimLeft(strings.Join(left, ";"), " "); text != "" {
			kept = append(kept, text)
		}
	}
	if len(kept) == 0 {
		delete(header, "Cookie")
		return
	}
	header["Cookie"] = kept
}

// mentionsCookie reports whether stripCookie would find something.
func mentionsCookie(header http.Header, name string) bool {
	for _, line := range header["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			if cutOurs(pair, name) != pair {
				return true
			}
		}
	}
	return false
}

// cutOurs returns pair (what stands between two semicolons) up to the place
// where a cookie begins that could be read as the one named. Some parsers also
// take a comma (older Rack and servlet containers) or white space (Python's
// SimpleCookie) as the end of a pair, so any of them may begin another.
func cutOurs(pair, name string) string {
	for start := 0; ; start++ {
		if foldsToCookie(pair[start:], name) {
			return pair[:start]
		}
		for start < len(pair) && pair[start] != ',' && !isCookieSpace(pair[start]) {
			start++
		}
		if start == len(pair) {
			return pair
		}
	}
}

// foldsToCookie reports whether text begins with a cookie whose name is the
// one given for at least one widespread server: PHP reads ".", " " and "[" as
// "_" and takes name[x] for a member of name, skips leading white space, and
// older releases decode percent escapes and end a name at NUL; ASP.NET ignores
// case; quotes around a name are an old RFC's.
func foldsToCookie(text, name string) bool {
	text = skipCookieSpace(text)
	for i := 0; i < len(name); i++ {
		var c byte
		if c, text = nextCookieByte(text); c == 0 || foldCookieByte(c) != foldCookieByte(name[i]) {
			return false
		}
	}
	c, rest := nextCookieByte(text)
	for c == '"' {
		c, rest = nextCookieByte(rest)
	}
	return c == '=' || c == '[' || c == ',' || isCookieSpace(c) // white space, the end, or NUL
}

// skipCookieSpace skips white space and quotes, also where they are escaped.
func skipCookieSpace(text string) string {
	for {
		c, rest := nextCookieByte(text)
		if c == 0 || c != '+' && c != '"' && !isCookieSpace(c) {
			return text
		}
		text = rest
	}
}

// isCookieSpace is true for what some server trims around a cookie's name:
// ASCII white space and other controls, and white space beyond ASCII in Latin-1
// (Node, Werkzeug) or UTF-8 (Django). No name that is ours has such bytes.
func isCookieSpace(c byte) bool { return c <= ' ' || c >= 0x7f }

// nextCookieByte returns the first byte of text, percent-decoded, and what
// follows; 0 at the end.
func nextCookieByte(text string) (byte, string) {
	if text == "" {
		return 0, ""
	}
	if text[0] == '%' && len(text) > 2 {
		if high, low := unhex(text[1]), unhex(text[2]); high < 16 && low < 16 {
			return high<<4 | low, text[3:]
		}
	}
	return text[0], text[1:]
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	default:
		return 255
	}
}

func foldCookieByte(c byte) byte {
	switch {
	case c == '.' || c == ' ' || c == '[' || c == '+':
		return '_'
	case c >= 'A' && c <= 'Z':
		return c + 'a' - 'A'
	default:
		return c
	}
}
