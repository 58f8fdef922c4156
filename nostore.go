package viewersession

import (
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// noStoreWriter sets Cache-Control just before the final response header is
// written. It buffers nothing.
type noStoreWriter struct {
	caddyhttp.ResponseWriterWrapper
	cacheControl, vary [1]string // room for the headers' values
	wroteHeader        bool
}

// serve calls the next handler and keeps its response out of caches: a page that
// holds a token, or shows that there was none, must be neither stored nor
// revalidated. It reports whether something further out has replaced Cache-Control
// as the header was written.
func (w *noStoreWriter) serve(under http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (replaced bool, err error) {
	delete(r.Header, "If-None-Match")
	delete(r.Header, "If-Modified-Since")
	w.ResponseWriter = under
	if err = next.ServeHTTP(w, r); err != nil {
		return false, err
	}
	replaced = w.wroteHeader && !saysNoStore(w.Header()["Cache-Control"])
	w.setNoStore() // for a handler that wrote nothing
	return replaced, nil
}

// WriteHeader implements http.ResponseWriter.
func (w *noStoreWriter) WriteHeader(status int) {
	// 1xx are informational, but for the switch to another protocol.
	if !w.wroteHeader && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.setNoStore()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *noStoreWriter) Write(p []byte) (int, error) {
	w.setNoStore()
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *noStoreWriter) ReadFrom(r io.Reader) (int64, error) {
	w.setNoStore()
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError is what http.ResponseController looks for. Flushing writes the
// header as well.
func (w *noStoreWriter) FlushError() error {
	w.setNoStore()
	//nolint:bodyclose // there is no body here
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *noStoreWriter) setNoStore() {
	if w.wroteHeader {
		return
	}
	w.wroteHeader = true
	header := w.Header()
	if !saysNoStore(header["Cache-Control"]) {
		w.cacheControl[0] = privateNoStore
		header["Cache-Control"] = w.cacheControl[:]
	}
	// A second line of defense: something further out may replace Cache-Control,
	// but caches that follow RFC 9111 never reuse what varies by everything.
	switch others := header["Vary"]; {
	case len(others) == 0:
		w.vary[0] = "*"
		header["Vary"] = w.vary[:]
	case !slices.Contains(others, "*"):
		header["Vary"] = slices.Concat(others, []string{"*"})
	}
	for _, name := range sharedCacheHeaders {
		delete(header, name)
	}
}

// sharedCacheHeaders are what shared caches that know one of them prefer to
// Cache-Control.
var sharedCacheHeaders = []string{
	"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Netlify-Cdn-Cache-Control", "Vercel-Cdn-Cache-Control", "Akamai-Cache-Control", "Edge-Control",
	"Surrogate-Control", "X-Accel-Expires", "X-Litespeed-Cache-Control",
}

const privateNoStore = "private, no-store"

func saysNoStore(cacheControl []string) bool {
	if len(cacheControl) == 1 && cacheControl[0] == privateNoStore {
		return true // as usual
	}
	for _, line := range cacheControl {
		for directive := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "no-store") {
				return true
			}
		}
	}
	return false
}
