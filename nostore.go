package viewersession

import (
	"io"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// noStoreWriter sets Cache-Control just before the final response header is
// written. It buffers nothing.
type noStoreWriter struct {
	caddyhttp.ResponseWriterWrapper
	cacheControl [1]string // room for the header's value
	wroteHeader  bool
}

// serve calls the next handler and keeps its response out of caches: a page that
// holds a token, or shows that there was none, must be neither stored nor
// revalidated.
func (w *noStoreWriter) serve(under http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	delete(r.Header, "If-None-Match")
	delete(r.Header, "If-Modified-Since")
	w.ResponseWriter = under
	err := next.ServeHTTP(w, r)
	if err == nil {
		w.setNoStore() // for a handler that wrote nothing
	}
	return err
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
		w.cacheControl[0] = "private, no-store"
		header["Cache-Control"] = w.cacheControl[:]
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
