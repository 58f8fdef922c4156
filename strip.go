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
	header  string // canonical
	cookie  string
	letters int // and digits in header
}

func newCarrier(header, cookie string) carrier {
	c := carrier{header: header, cookie: cookie}
	for i := range len(header) {
		if isAlphanumeric(header[i]) {
			c.letters++
		}
	}
	return c
}

// strip removes whatever the client sent under the carrier's names. It runs
// before anything else, on every request that reaches the handler, so that no
// branch (another path, an error, on_error pass) can let a client's value
// through to an app that trusts the name.
func (c carrier) strip(r *http.Request) {
	var connection, upgrade []string
	for name, values := range r.Header {
		switch name {
		case "Connection":
			connection = values
		case "Upgrade":
			upgrade = values
		case "Http2-Settings":
			delete(r.Header, name)
		}
		if c.aliasesHeader(name) && !visitOf(r).carriesHeader(name) {
			delete(r.Header, name)
		}
	}
	if c.cookie != "" && !visitOf(r).carriesCookie(c.cookie) {
		stripCookie(r.Header, c.cookie)
	}
	tunnel := len(upgrade) > 0 && stripUpgrade(r.Header, upgrade)
	if len(connection) > 0 {
		// A header named in Connection is dropped by the next proxy as
		// hop-by-hop. A client that names ours would get our token removed,
		// and could make the app fall back to something weaker.
		c.stripConnection(r.Header, connection, tunnel)
	}
	if r.Trailer != nil {
		c.stripTrailer(r.Trailer)
		if r.Body != nil {
			// Trailers are filled in when the body has been read.
			r.Body = &trailerStripper{ReadCloser: r.Body, carrier: c, trailer: r.Trailer}
		}
	}
}

// aliasesHeader reports whether an app could take a header of this name for the
// carrier's. CGI, WSGI and Rack apps see X_Viewer_Session, X.Viewer.Session and
// X-Viewer-Session as one and the same variable, and other servers fold more.
func (c carrier) aliasesHeader(name string) bool {
	// Most names are longer or shorter, or begin with another letter, which is
	// seen here without a call.
	return len(name) >= c.letters && c.header != "" && (name[0]|0x20 == c.header[0]|0x20 || !isAlphanumeric(name[0])) && foldsToHeader(name, c.header)
}

// foldsToHeader reports whether name is the header's but for case, or would be
// if whatever is not a letter or digit were left out of both, and either has
// something in it that is neither, nor a hyphen: no list of what servers fold is
// needed.
func foldsToHeader(name, header string) bool {
	if strings.EqualFold(name, header) {
		return true
	}
	odd := false
	for i := 0; ; i++ {
		for ; name != "" && !isAlphanumeric(name[0]); name = name[1:] {
			odd = odd || name[0] != '-'
		}
		for ; header != "" && !isAlphanumeric(header[0]); header = header[1:] {
			odd = odd || header[0] != '-'
		}
		if name == "" || header == "" {
			return odd && name == header
		}
		if lower(name[0]) != lower(header[0]) {
			return false
		}
		name, header = name[1:], header[1:]
	}
}

// lower returns an ASCII letter in lower case, and a digit as it is.
func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// stripUpgrade leaves websocket of what a client wants to speak instead of HTTP.
// Anything else would open a tunnel to an app that agrees, and what goes through
// it is stripped by nobody: by h2c, for example, a client sends requests of its
// own. It reports whether nothing is left.
func stripUpgrade(header http.Header, lines []string) (removed bool) {
	for _, line := range lines {
		for protocol := range strings.SplitSeq(line, ",") {
			if protocol = strings.TrimSpace(protocol); strings.EqualFold(protocol, "websocket") {
				if len(lines) > 1 || line != protocol {
					header["Upgrade"] = []string{protocol}
				}
				return false
			}
		}
	}
	delete(header, "Upgrade")
	return true
}

// hides reports whether name, as a header's name, is one that must not be
// named in Connection or sent as a trailer.
func (c carrier) hides(name string) bool {
	return name != "" && c.header != "" && foldsToHeader(name, c.header) ||
		c.cookie != "" && foldsToHeader(name, "Cookie")
}

// stripConnection takes what must not be named out of Connection, and Upgrade if
// that has been removed.
func (c carrier) stripConnection(header http.Header, lines []string, tunnel bool) {
	var kept []string
	changed := false
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.TrimSpace(option)
			if c.hides(option) || strings.EqualFold(option, "HTTP2-Settings") || tunnel && strings.EqualFold(option, "Upgrade") {
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

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
