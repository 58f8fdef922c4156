// Package emulator stands in for the part of the Nutrient DWS Viewer API that
// a session token passes through: minting it, and the Web SDK's first call
// with it. It is for development and tests; nothing here renders a document.
package emulator

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

//go:embed nutrient-viewer.js
var sdk []byte

// Options configure an [Emulator]. The zero value is usable.
type Options struct {
	// The one API key that is accepted. Default: any key that begins with
	// "pdf_live_". A key that begins with "pdf_live_processor" is answered
	// with 403 in any case: it stands for the account's Processor key.
	APIKey string

	// Answer clients that are not on a loopback address, and requests for a
	// Host that is not loopback. Default: both are answered with 403.
	AllowRemote bool

	// The server_url claim of the tokens, where the Web SDK goes with them.
	// Default: scheme and Host of the request that asked for the token. It
	// ends in a slash, which is added if need be.
	ServerURL string

	// The longest lifetime granted; a request for more gets this much.
	// Default: no limit below the API's own.
	MaxTTL time.Duration

	// The member of a document's entry that holds its permissions:
	// "permissions", as reported of the live API, or "document_permissions", as
	// in its guides. The other one is ignored, and a request without grants
	// everything. Default: "permissions".
	PermissionsMember string

	// Refuse members that the guides do not name, "permissions" among them. It
	// implies a PermissionsMember of "document_permissions".
	Strict bool

	// How to misbehave from the start; see [Emulator.SetFault].
	Fault Fault

	// Called with every request to /viewer/sessions and its body, at most 64
	// KiB of it, before the request is judged, from the goroutine that serves it.
	OnMint func(r *http.Request, body []byte)
}

// Emulator is the stand-in, an [http.Handler]. It is safe for concurrent use.
// Each one signs with a secret of its own, so tokens do not outlive it.
type Emulator struct {
	opts   Options
	keys   atomic.Pointer[keys]
	closed chan struct{}
	close  func()

	mu    sync.Mutex
	stats Stats
	fault Fault
}

// The values of [Options.PermissionsMember].
const (
	livePermissions       = "permissions"
	documentedPermissions = "document_permissions"
)

// validate returns what is wrong with the options, if anything.
func (o Options) validate() error {
	switch o.PermissionsMember {
	case "", livePermissions, documentedPermissions:
	default:
		return fmt.Errorf("permissions_member %q: use permissions or document_permissions", o.PermissionsMember)
	}
	if o.Strict && o.PermissionsMember == livePermissions {
		return errors.New("strict refuses the member permissions: leave permissions_member out")
	}
	return o.Fault.Validate()
}

// New returns an emulator. It panics if opts are not valid.
func New(opts Options) *Emulator {
	if err := opts.validate(); err != nil {
		panic("emulator: " + err.Error())
	}
	if opts.Strict {
		opts.PermissionsMember = documentedPermissions
	}
	opts.PermissionsMember = cmp.Or(opts.PermissionsMember, livePermissions)
	if opts.ServerURL != "" && !strings.HasSuffix(opts.ServerURL, "/") {
		opts.ServerURL += "/"
	}
	e := &Emulator{opts: opts, closed: make(chan struct{})}
	e.keys.Store(&keys{current: newSecret(), revoked: newSecret()})
	e.close = sync.OnceFunc(func() { close(e.closed) })
	e.Reset()
	e.SetFault(opts.Fault)
	return e
}

// Close ends whatever a fault is holding up: a hanging request is cut off, a
// delayed or dripping one answered at once. The emulator goes on serving, for
// after a config reload there are still requests in it, but it never waits again.
func (e *Emulator) Close() { e.close() }

// ServeHTTP answers POST /viewer/sessions; the Web SDK's first calls, POST
// /i/d/{document_id}/auth and, for documents that the page brings, POST
// /i/viewer/standalone/auth; GET /emulator/nutrient-viewer.js (which stands in for
// the Web SDK) and the control endpoints under /emulator/. Anything else is a 404.
func (e *Emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !e.opts.AllowRemote && !local(r) {
		http.Error(w, "dws_emulator is for development: it answers only loopback clients that "+
			"ask for localhost or a loopback address; allow_remote lifts this", http.StatusForbidden)
		return
	}
	if r.URL.Path == "/viewer/sessions" {
		e.serveSessions(w, r)
	} else if id, ok := authDocument(r.URL); ok {
		e.serveAuth(w, r, id)
	} else if r.URL.Path == "/i/viewer/standalone/auth" {
		e.serveStandaloneAuth(w, r)
	} else if r.URL.Path == "/emulator/nutrient-viewer.js" {
		serveSDK(w, r)
	} else if strings.HasPrefix(r.URL.Path, "/emulator/") {
		e.serveControl(w, r)
	} else {
		apiError(http.StatusNotFound, "not found").write(w)
	}
}

// serveSDK answers with the script that stands in for the Web SDK. Pages of
// other origins load it, as they load the SDK itself.
func serveSDK(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "nutrient-viewer.js", time.Time{}, bytes.NewReader(sdk))
}

// local tells whether both ends are on this machine. The address alone would
// not do: a web page whose name was rebound to 127.0.0.1 comes from loopback.
func local(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// authDocument takes the document id out of /i/d/{document_id}/auth. It reads
// the escaped path, since an id may hold an encoded slash.
func authDocument(u *url.URL) (id string, ok bool) {
	id, ok = strings.CutPrefix(u.EscapedPath(), "/i/d/")
	if !ok {
		return "", false
	}
	id, ok = strings.CutSuffix(id, "/auth")
	if !ok || id == "" || strings.Contains(id, "/") {
		return "", false
	}
	id, err := url.PathUnescape(id)
	return id, err == nil
}
