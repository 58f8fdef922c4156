package viewersession

import (
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// injected is a token that an instance of the handler has put on the request.
type injected struct {
	*carrier
	jwt string
}

// inject puts the token on the request under the carrier's names. What the
// client had there has been stripped, so it stands there once.
func (v *visit) inject(r *http.Request, c *carrier, jwt string) {
	if c.header != "" {
		value := v.header[:]
		if len(v.injected) > 0 {
			value = []string{""} // the usual place is taken
		}
		// Later header operations may edit the value in place; its capacity
		// keeps them from writing behind it.
		value[0] = jwt
		r.Header[c.header] = value[:1:1]
	}
	if c.cookie != "" {
		for _, other := range v.injected {
			if other.cookie != "" && mayHoldCookie(other.cookie, c.cookie) {
				removeCookie(r.Header, other.cookie, other.jwt)
			}
		}
		text := c.cookie + "=" + jwt
		if others := r.Header["Cookie"]; len(others) > 0 {
			// In front: some parsers give up at a malformed or the thousandth pair.
			text += "; " + strings.Join(others, "; ")
		}
		r.Header["Cookie"] = []string{text}
	}
	v.injected = append(v.injected, injected{c, jwt})
}

// eject takes the token off the request again. Instances end in the reverse
// order of that in which they began.
func (v *visit) eject(r *http.Request, c *carrier) {
	last := v.injected[len(v.injected)-1]
	if c.header != "" {
		delete(r.Header, c.header)
	}
	if c.cookie != "" {
		removeCookie(r.Header, c.cookie, last.jwt)
	}
	v.injected = v.injected[:len(v.injected)-1]
}

// carriesHeader reports whether an instance of the handler has put a token on
// the request under this name. It has stripped the client's values before that,
// and what it injected is to be left alone by another one in the same chain.
func (v *visit) carriesHeader(name string) bool {
	return v != nil && slices.ContainsFunc(v.injected, func(i injected) bool { return i.header == name })
}

// carriesCookie is carriesHeader for a cookie that could be taken for the one named.
func (v *visit) carriesCookie(name string) bool {
	return v != nil && slices.ContainsFunc(v.injected, func(i injected) bool { return i.cookie != "" && mayHoldCookie(i.cookie, name) })
}

// serveUncached calls the next handler and keeps its response out of caches,
// unless the config leaves that to the app: a page that holds a token, or shows
// that there was none, must be neither stored nor revalidated.
func (h *Handler) serveUncached(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, visit *visit) error {
	if h.AllowStore {
		return next.ServeHTTP(w, r)
	}
	delete(r.Header, "If-None-Match")
	delete(r.Header, "If-Modified-Since")
	guard := &visit.guard
	if guard.ResponseWriter != nil {
		guard = new(cacheGuard) // the usual place is taken
	}
	guard.ResponseWriter = w
	err := next.ServeHTTP(guard, r)
	if err == nil {
		guard.forbidStoring() // for a handler that wrote nothing
	}
	return err
}

// cacheGuard sets Cache-Control just before the final response header is
// written. It buffers nothing.
type cacheGuard struct {
	caddyhttp.ResponseWriterWrapper
	cacheControl [1]string // room for the header's value
	wroteHeader  bool
}

// WriteHeader implements http.ResponseWriter.
func (g *cacheGuard) WriteHeader(status int) {
	// 1xx are informational, but for the switch to another protocol.
	if !g.wroteHeader && (status >= 200 || status == http.StatusSwitchingProtocols) {
		g.forbidStoring()
	}
	g.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (g *cacheGuard) Write(p []byte) (int, error) {
	g.forbidStoring()
	return g.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (g *cacheGuard) ReadFrom(r io.Reader) (int64, error) {
	g.forbidStoring()
	return g.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError is what http.ResponseController looks for. Flushing writes the
// header as well.
func (g *cacheGuard) FlushError() error {
	g.forbidStoring()
	//nolint:bodyclose // there is no body here
	return http.NewResponseController(g.ResponseWriter).Flush()
}

func (g *cacheGuard) forbidStoring() {
	if g.wroteHeader {
		return
	}
	g.wroteHeader = true
	header := g.Header()
	if !saysNoStore(header["Cache-Control"]) {
		g.cacheControl[0] = "private, no-store"
		header["Cache-Control"] = g.cacheControl[:]
	}
	for _, name := range sharedCacheHeaders {
		delete(header, name)
	}
}

// sharedCacheHeaders are what shared caches that know one of them prefer to
// Cache-Control.
var sharedCacheHeaders = []string{"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control", "X-Accel-Expires"}

func saysNoStore(cacheControl []string) bool {
	for _, line := range cacheControl {
		for directive := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "no-store") {
				return true
			}
		}
	}
	return false
}
