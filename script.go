package viewersession

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/pattern"
)

// script is the module for the page, which script_path serves.
//
//go:embed web/viewer-session.js
var script string

var scriptETag = fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(script)))

// compileScript compiles the path at which the script is served.
func compileScript(path string) (*route, error) {
	p, err := pattern.Parse(path)
	if err != nil || p.HasID() || strings.Contains(path, "*") || path == "/" {
		return nil, fmt.Errorf("script_path %q: write one literal path of letters, digits, - and the like, for example /viewer-session.js", path)
	}
	return &route{script: true, patterns: []*pattern.Pattern{p}, template: new(claims.Template)}, nil
}

// servesScript reports whether a request to the script's path is for the script.
// Others are the app's.
func servesScript(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && !skipsToken(r)
}

// serveScript answers with the script. Browsers revalidate it, so they always run
// the version of this gateway.
func serveScript(w http.ResponseWriter, r *http.Request) {
	delete(r.Header, "Range") // it is small, and always served whole
	header := w.Header()
	header.Set("Content-Type", "text/javascript; charset=utf-8")
	header.Set("Cache-Control", "no-cache")
	header.Set("ETag", scriptETag)
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(script))
}
