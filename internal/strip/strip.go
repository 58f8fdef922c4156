// Package strip removes from requests what clients must not choose: whatever
// some server could read as a trusted header or cookie, and upgrades that would
// open a tunnel to the app.
package strip

import (
	"io"
	"net/http"
	"slices"
	"strings"
)

// Names are the header and the cookie that carry a trusted value. Either may be
// empty. What clients send under these names never reaches the next handler.
type Names struct {
	Header  string // canonical
	Cookie  string
	letters int // and digits in Header
}

// New returns the names. The header's must be in canonical form.
func New(header, cookie string) Names {
	n := Names{Header: header, Cookie: cookie}
	for i := range len(header) {
		if isAlphanumeric(header[i]) {
			n.letters++
		}
	}
	return n
}

// Placed is a value that the gateway has put on a request under these names,
// after it had removed the client's.
type Placed struct {
	*Names
	Value string
}

// Strip removes whatever the client sent under the names, in the header, the
// cookies and the trailers, any mention of them in Connection, and every upgrade
// but to WebSocket. placed returns what must be left alone because the gateway
// has put it there; nil for nothing.
func (n Names) Strip(r *http.Request, placed func(*http.Request) []Placed) {
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
		if n.aliasesHeader(name) && (placed == nil || !holdsHeader(placed(r), name)) {
			delete(r.Header, name)
		}
	}
	if n.Cookie != "" && (placed == nil || !holdsCookie(placed(r), n.Cookie)) {
		stripCookie(r.Header, n.Cookie)
	}
	tunnel := len(upgrade) > 0 && stripUpgrade(r.Header, upgrade)
	if len(connection) > 0 {
		// A header named in Connection is dropped by the next proxy as
		// hop-by-hop. A client that names ours would get our token removed,
		// and could make the app fall back to something weaker.
		n.stripConnection(r.Header, connection, tunnel)
	}
	if r.Trailer != nil {
		n.stripTrailer(r.Trailer)
		if r.Body != nil {
			// Trailers are filled in when the body has been read.
			r.Body = &trailerStripper{ReadCloser: r.Body, names: n, trailer: r.Trailer}
		}
	}
}

func holdsHeader(placed []Placed, name string) bool {
	return slices.ContainsFunc(placed, func(p Placed) bool { return p.Header == name })
}

func holdsCookie(placed []Placed, name string) bool {
	return slices.ContainsFunc(placed, func(p Placed) bool { return p.Cookie != "" && MayHoldCookie(p.Cookie, name) })
}

// aliasesHeader reports whether an app could take a header of this name for
// ours. CGI, WSGI and Rack apps see X_Viewer_Session, X.Viewer.Session and
// X-Viewer-Session as one and the same variable, and other servers fold more.
func (n Names) aliasesHeader(name string) bool {
	// Most names are longer or shorter, or begin with another letter, which is
	// seen here without a call.
	return len(name) >= n.letters && n.Header != "" && (name[0]|0x20 == n.Header[0]|0x20 || !isAlphanumeric(name[0])) && foldsToHeader(name, n.Header)
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
func (n Names) hides(name string) bool {
	return name != "" && n.Header != "" && foldsToHeader(name, n.Header) ||
		n.Cookie != "" && foldsToHeader(name, "Cookie")
}

// stripConnection takes what must not be named out of Connection, and Upgrade if
// that has been removed.
func (n Names) stripConnection(header http.Header, lines []string, tunnel bool) {
	var kept []string
	changed := false
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.TrimSpace(option)
			if n.hides(option) || strings.EqualFold(option, "HTTP2-Settings") || tunnel && strings.EqualFold(option, "Upgrade") {
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

func (n Names) stripTrailer(trailer http.Header) {
	for name := range trailer {
		if n.hides(name) {
			delete(trailer, name)
		}
	}
}

// trailerStripper removes the names from the request's trailers at
// the moment when they become known, before the reader of the body sees them.
type trailerStripper struct {
	io.ReadCloser
	names   Names
	trailer http.Header
}

// Read implements io.Reader.
func (t *trailerStripper) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err != nil {
		t.names.stripTrailer(t.trailer)
	}
	return n, err
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
