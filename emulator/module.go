package emulator

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler answers every request that reaches it as the DWS Viewer API would.
// It is for development: the tokens are good for nothing but itself.
//
// Handlers with the same settings share one emulator, also across config
// reloads: counts, faults and the tokens given out stay.
type Handler struct {
	// The one API key that is accepted. Placeholders such as {env.X} and
	// {file.x} are replaced when the config loads. Default: any key that
	// begins with pdf_live_.
	APIKey string `json:"api_key,omitempty"`

	// Answer clients that are not on a loopback address, and requests for a
	// Host that is not loopback. Default: false.
	AllowRemote bool `json:"allow_remote,omitempty"`

	// The server_url claim of the tokens. Default: scheme and Host of the
	// request that asked for the token.
	ServerURL string `json:"server_url,omitempty"`

	// The longest lifetime granted. Default: 0, no limit below the API's own.
	MaxTTL caddy.Duration `json:"max_ttl,omitempty"`

	// The member of a document's entry that holds its permissions:
	// `permissions`, as reported of the live API, or `document_permissions`, as
	// in its guides. Default: `permissions`
	PermissionsMember string `json:"permissions_member,omitempty"`

	// Refuse members that the guides do not name, `permissions` among them.
	// Default: false.
	Strict bool `json:"strict,omitempty"`

	// How to misbehave from the start. Default: not at all.
	Fault Fault `json:"fault,omitzero"`

	emulator *Emulator
	key      *settings
}

// settings are what makes two emulators different.
type settings struct {
	apiKey            string
	allowRemote       bool
	serverURL         string
	maxTTL            caddy.Duration
	permissionsMember string
	strict            bool
	fault             Fault
}

func (s settings) options() Options {
	return Options{
		APIKey:            s.apiKey,
		AllowRemote:       s.allowRemote,
		ServerURL:         s.serverURL,
		MaxTTL:            time.Duration(s.maxTTL),
		PermissionsMember: s.permissionsMember,
		Strict:            s.strict,
		Fault:             s.fault,
	}
}

var emulators = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.dws_emulator",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision resolves the key and takes the emulator for these settings.
func (h *Handler) Provision(caddy.Context) error {
	apiKey, err := caddy.NewReplacer().ReplaceOrErr(h.APIKey, true, true)
	if err != nil {
		return fmt.Errorf("api_key: %w; set it, or leave api_key out to accept any key that begins with %s", err, keyPrefix)
	}
	if u, err := url.Parse(h.ServerURL); h.ServerURL != "" &&
		(err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "") {
		return fmt.Errorf("server_url %q: use an absolute URL such as http://localhost:9091/", h.ServerURL)
	}
	if h.MaxTTL < 0 {
		return fmt.Errorf("max_ttl %v: must not be negative", time.Duration(h.MaxTTL))
	}
	key := settings{apiKey, h.AllowRemote, h.ServerURL, h.MaxTTL, h.PermissionsMember, h.Strict, h.Fault}
	if err := key.options().validate(); err != nil {
		return err
	}
	shared, _, err := emulators.LoadOrNew(key, func() (caddy.Destructor, error) { return pooled{New(key.options())}, nil })
	if err != nil {
		return err
	}
	h.emulator, h.key = shared.(pooled).Emulator, &key
	return nil
}

// Cleanup gives the emulator back. It is kept in h: a reload does not wait for
// requests in flight.
func (h *Handler) Cleanup() error {
	if h.key == nil {
		return nil
	}
	key := *h.key
	h.key = nil
	_, err := emulators.Delete(key)
	return err
}

// ServeHTTP answers the request; no later handler sees it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	h.emulator.ServeHTTP(w, r)
	return nil
}

type pooled struct{ *Emulator }

// Destruct implements caddy.Destructor.
func (p pooled) Destruct() error {
	p.Close()
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
)
