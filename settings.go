package viewersession

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
	"github.com/viewersession/caddy-viewer-session/internal/secret"
)

const (
	defaultAPIKey    = "{env.NUTRIENT_DWS_VIEWER_API_KEY}" //nolint:gosec // a placeholder
	defaultEndpoint  = "https://api.nutrient.io/viewer/sessions"
	defaultTimeout   = 5 * time.Second
	defaultMintRate  = 100.0
	defaultMintBurst = 1000
	defaultCacheSize = 64 << 20

	minTimeout               = 100 * time.Millisecond
	minCacheSize             = 1 << 20
	maxCacheSize             = 64 << 30
	minMintRate, maxMintRate = 0.001, 1e6

	// idleConnsPerHost keeps a burst of mints from dialing anew each time.
	idleConnsPerHost = 256

	// maxReplyHeaderBytes bounds the API's response headers.
	maxReplyHeaderBytes = 64 << 10

	transportModule = "http.reverse_proxy.transport.http"
)

// PoolOptions say how tokens are minted and kept.
type PoolOptions struct {
	// The API key of the DWS Viewer API: one placeholder, such as
	// `{env.NAME}` or `{file./path}`, so that the key itself is in no config. It is resolved when the config loads, and again when the API
	// refuses the key. Default: `{env.NUTRIENT_DWS_VIEWER_API_KEY}`
	APIKey string `json:"api_key,omitempty"`

	// The URL that tokens are minted at. Plain HTTP is refused except to
	// loopback. Default: `https://api.nutrient.io/viewer/sessions`
	Endpoint string `json:"endpoint,omitempty"`

	// Allow plain HTTP to an endpoint that is not loopback. The API key and
	// the tokens can then be read on the way.
	InsecureEndpoint bool `json:"insecure_endpoint,omitempty"`

	// How long minting a token may take in all, waiting for mint_rate
	// included: 100ms to 1m. Default: `5s`
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many tokens are minted at most. Document ids come from URLs, so
	// strangers choose them. Over it, requests queue for half of timeout at
	// most, and clients take turns. Default: 100 per second, 1000 at once.
	MintRate *MintRate `json:"mint_rate,omitempty"`

	// How many bytes of memory cached tokens may take, at least 1048576
	// (1 MiB). Default: 67108864 (64 MiB)
	CacheSize int64 `json:"cache_size,omitempty"`

	// How the API is reached: Caddy's own HTTP transport as in
	// reverse_proxy, with its trust pools, client certificates, network
	// proxies and resolvers. HTTP/3 and the PROXY protocol are refused.
	TransportRaw json.RawMessage `json:"transport,omitempty" caddy:"namespace=http.reverse_proxy.transport inline_key=protocol"`

	// Where gateways share their tokens, so that each is minted once for all.
	// Default: none; each gateway mints for itself.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=http.handlers.viewer_session.stores inline_key=store"`
}

// MintRate bounds how many tokens are minted. It is a token bucket.
type MintRate struct {
	// Mints per second.
	Rate float64 `json:"rate,omitempty"`

	// Mints at once. Default: ten times the rate, at least 1.
	Burst int `json:"burst,omitempty"`

	// No bound at all.
	Off bool `json:"off,omitempty"`
}

// poolSettings is what handlers must have in common to share a pool. It is the
// pool's key, compared as a whole.
type poolSettings struct {
	endpoint  string
	apiKey    string // the placeholder, not its value
	timeout   time.Duration
	rate      float64 // per second; infinite for none
	burst     int
	cacheSize int64
	transport string // as JSON
	store     string // as JSON; empty for none
}

// settings checks the options and completes them with the defaults.
func (o *PoolOptions) settings() (poolSettings, *url.URL, error) {
	s := poolSettings{
		apiKey:    o.APIKey,
		timeout:   time.Duration(o.Timeout),
		rate:      defaultMintRate,
		burst:     defaultMintBurst,
		cacheSize: o.CacheSize,
	}
	if s.apiKey == "" {
		s.apiKey = defaultAPIKey
	}
	if err := secret.Check("api_key", s.apiKey); err != nil {
		return poolSettings{}, nil, err
	}
	if s.timeout == 0 {
		s.timeout = defaultTimeout
	}
	if s.timeout < minTimeout || s.timeout > mint.MaxTimeout {
		return poolSettings{}, nil, fmt.Errorf("timeout %s: write a duration from 100ms to 1m", s.timeout)
	}
	if s.cacheSize == 0 {
		s.cacheSize = defaultCacheSize
	}
	if err := checkCacheSize(s.cacheSize); err != nil {
		return poolSettings{}, nil, err
	}
	if o.MintRate != nil {
		var err error
		if s.rate, s.burst, err = o.MintRate.limits(); err != nil {
			return poolSettings{}, nil, err
		}
	}
	endpoint, err := o.parseEndpoint()
	if err != nil {
		return poolSettings{}, nil, err
	}
	s.endpoint = endpoint.String()
	if s.transport, err = o.transportJSON(endpoint.Scheme); err != nil {
		return poolSettings{}, nil, err
	}
	if o.StoreRaw != nil {
		s.store, err = o.storeJSON()
	}
	return s, endpoint, err
}

func checkCacheSize(size int64) error {
	if size < minCacheSize || size > maxCacheSize {
		return fmt.Errorf("cache_size of %d bytes: write a size from 1MiB to 64GiB", size)
	}
	return nil
}

func (m *MintRate) limits() (perSecond float64, burst int, err error) {
	if m.Off {
		if m.Rate != 0 || m.Burst != 0 {
			return 0, 0, errors.New("mint_rate: off takes no rate")
		}
		return math.Inf(1), 0, nil
	}
	if !(m.Rate >= minMintRate) || m.Rate > maxMintRate {
		return 0, 0, fmt.Errorf("mint_rate %v: write how many tokens may be minted per second, from 0.001 to 1000000, or off", m.Rate)
	}
	if m.Burst < 0 {
		return 0, 0, fmt.Errorf("mint_rate: a burst of %d: write 1 or more", m.Burst)
	}
	if m.Burst == 0 {
		return m.Rate, max(1, int(10*m.Rate)), nil
	}
	return m.Rate, m.Burst, nil
}

// parseEndpoint refuses addresses that would send the key in the clear.
func (o *PoolOptions) parseEndpoint() (*url.URL, error) {
	text := o.Endpoint
	if text == "" {
		text = defaultEndpoint
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Fragment != "" || strings.ContainsAny(text, "{}") {
		return nil, fmt.Errorf("endpoint %q is not a URL: write one such as %s", redactURL(text), defaultEndpoint)
	}
	if u.User != nil {
		return nil, errors.New("endpoint: a URL with a user or password in it is refused, because it would appear in the config; the key goes into api_key")
	}
	switch u.Scheme {
	case "https":
	case "http":
		if !o.InsecureEndpoint && !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("endpoint %s is plain HTTP, so the API key could be read on the way: use https, or set insecure_endpoint if you accept that", text)
		}
	default:
		return nil, fmt.Errorf("endpoint %q: the scheme is https", text)
	}
	return u, nil
}

// redactURL hides what is before an at sign.
func redactURL(text string) string {
	if at := strings.LastIndexByte(text, '@'); at >= 0 {
		return "…" + text[at:]
	}
	return text
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// transportJSON returns the transport's config with our own defaults filled in,
// in a form that is the same for the same settings.
func (o *PoolOptions) transportJSON(scheme string) (string, error) {
	var t reverseproxy.HTTPTransport
	if o.TransportRaw != nil {
		var protocol struct {
			Protocol string `json:"protocol"`
		}
		if err := json.Unmarshal(o.TransportRaw, &protocol); err != nil {
			return "", fmt.Errorf("transport: %w", err)
		}
		if protocol.Protocol != "http" {
			return "", fmt.Errorf("transport %q: the only one is http", protocol.Protocol)
		}
		raw, err := withoutMember(o.TransportRaw, "protocol")
		if err != nil {
			return "", fmt.Errorf("transport: %w", err)
		}
		if err := caddy.StrictUnmarshalJSON(raw, &t); err != nil {
			return "", fmt.Errorf("transport http: %w", err)
		}
	}
	if slices.Contains(t.Versions, "3") {
		return "", errors.New("transport http: versions 3 is refused, because a reload would break off mints that are under way; use 1.1 or 2")
	}
	if t.ProxyProtocol != "" {
		return "", errors.New("transport http: proxy_protocol is refused, because a mint is not made for any one client")
	}
	if t.TLS != nil && scheme == "http" {
		return "", errors.New("transport http: TLS options have no effect on an endpoint with http: write https, or remove them")
	}
	if t.TLS != nil && t.TLS.InsecureSkipVerify && !o.InsecureEndpoint {
		return "", errors.New("transport http: tls_insecure_skip_verify lets anybody on the way read the API key: write tls_trust_pool with the authority's certificate, or set insecure_endpoint if you accept that")
	}
	if t.KeepAlive == nil {
		t.KeepAlive = new(reverseproxy.KeepAlive)
	}
	if t.KeepAlive.MaxIdleConnsPerHost == 0 {
		t.KeepAlive.MaxIdleConnsPerHost = idleConnsPerHost
	}
	if t.MaxResponseHeaderSize == 0 {
		t.MaxResponseHeaderSize = maxReplyHeaderBytes
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("transport: %w", err)
	}
	return canonicalJSON(raw)
}

// storeJSON checks which store it is, and returns its config in a form that is
// the same for the same settings.
func (o *PoolOptions) storeJSON() (string, error) {
	var store struct {
		Name string `json:"store"`
	}
	if err := json.Unmarshal(o.StoreRaw, &store); err != nil || store.Name == "" {
		return "", errors.New(`store: write an object with the store's name under the key "store", for example {"store": "redis", ...}`)
	}
	if err := checkStoreName(store.Name); err != nil {
		return "", err
	}
	return canonicalJSON(o.StoreRaw)
}

// checkStoreName says how to get a store that is not compiled in.
func checkStoreName(name string) error {
	if _, err := caddy.GetModule(storeNamespace + "." + name); err != nil {
		hint := "build Caddy with the plugin that brings it"
		if name == "redis" {
			hint = "build Caddy with it: xcaddy build --with github.com/viewersession/caddy-viewer-session/redis"
		}
		return fmt.Errorf("store %s is not in this Caddy: %s", name, hint)
	}
	return nil
}

// canonicalJSON sorts the members of objects, at any depth.
func canonicalJSON(raw json.RawMessage) (string, error) {
	members, err := dws.DecodeJSON(raw)
	if err != nil {
		return "", err
	}
	canonical, err := json.Marshal(members)
	return string(canonical), err
}

func withoutMember(object json.RawMessage, name string) (json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		return nil, err
	}
	delete(members, name)
	return json.Marshal(members)
}

// resolveKey returns the value of the placeholder.
func resolveKey(placeholder string) (string, error) {
	key, err := secret.Resolve("api_key", placeholder)
	if err != nil {
		return "", fmt.Errorf("%w: put the Viewer API key of your DWS account there before Caddy starts", err)
	}
	if name := secret.NameInFront(key); name != "" {
		return "", fmt.Errorf("api_key %s begins with %s=: it should be the key alone, without the name of a variable in front", placeholder, name)
	}
	if !secret.WellFormed(key) {
		return "", fmt.Errorf("api_key %s holds spaces, quotes or other characters that no key has: it should be the key alone, without quotes, a name or Bearer in front", placeholder)
	}
	return key, nil
}
