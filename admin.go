package viewersession

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// maxPurgeBytes bounds the body of a purge.
const maxPurgeBytes = 64 << 10

// adminAPI provides /viewer_session/ in Caddy's admin API. It never shows a
// token or key.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.viewer_session",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (a adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/viewer_session/", Handler: caddy.AdminHandlerFunc(a.status)},
		{Pattern: "/viewer_session/purge", Handler: caddy.AdminHandlerFunc(a.purge)},
	}
}

// status shows what each pool has counted, and what is wrong with it.
func (adminAPI) status(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path != "/viewer_session/" {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("there are /viewer_session/ and /viewer_session/purge")}
	}
	if err := allowOnly(http.MethodGet, w, r); err != nil {
		return err
	}
	all := struct {
		Pools []poolStatus `json:"pools"`
	}{Pools: []poolStatus{}}
	for _, p := range allPools() {
		all.Pools = append(all.Pools, p.status(p.now()))
	}
	return writeAdminJSON(w, all)
}

// poolStatus is what the admin API says of a pool. Times are null while there
// is nothing to say.
type poolStatus struct {
	Endpoint      string            `json:"endpoint"`
	APIKey        string            `json:"api_key"` // the placeholder
	Handlers      int               `json:"handlers"`
	Since         time.Time         `json:"since"`
	Requests      map[string]uint64 `json:"requests"`
	Mints         map[string]uint64 `json:"mints"`
	MintsInFlight int64             `json:"mints_in_flight"`
	LastMint      *time.Time        `json:"last_mint"`
	RateLimited   uint64            `json:"rate_limited"`
	CachedTokens  int64             `json:"cached_tokens"`
	CachedBytes   int64             `json:"cached_bytes"`
	CacheSize     int64             `json:"cache_size"`
	CacheRejected uint64            `json:"cache_rejected"`
	BackOff       *errorStatus      `json:"back_off"`
	FailingSince  *time.Time        `json:"failing_since"`
	LastError     *errorStatus      `json:"last_error"`
	Store         *storeStatus      `json:"store"` // null if there is none
}

// storeStatus is what the admin API says of the shared store.
type storeStatus struct {
	Operations   map[string]map[string]uint64 `json:"operations"`
	FailingSince *time.Time                   `json:"failing_since"`
	LastError    *errorStatus                 `json:"last_error"`
}

func (p *pool) storeStatus() *storeStatus {
	if p.settings.store == "" {
		return nil
	}
	s := &storeStatus{Operations: make(map[string]map[string]uint64)}
	for i, o := range storeOperations {
		if s.Operations[o.operation] == nil {
			s.Operations[o.operation] = make(map[string]uint64)
		}
		s.Operations[o.operation][o.outcome] = p.stats.store[i].Load()
	}
	s.FailingSince, s.LastError = p.stats.sharing.status()
	return s
}

func (p *pool) status(now clock.Time) poolStatus {
	s := poolStatus{
		Endpoint:      p.settings.endpoint,
		APIKey:        p.settings.apiKey,
		Since:         p.started.Wall(),
		Requests:      make(map[string]uint64),
		Mints:         make(map[string]uint64),
		MintsInFlight: p.stats.inFlight.Load(),
		RateLimited:   p.stats.rateLimited.Load(),
		CacheSize:     p.settings.cacheSize,
		CacheRejected: p.stats.turnedAway.Load(),
		Handlers:      p.members.count(),
		Store:         p.storeStatus(),
	}
	for r := resultHit; r <= resultError; r++ {
		s.Requests[r.String()] = p.stats.requests[r].Load()
	}
	for i, o := range outcomes {
		s.Mints[o] = p.stats.mints[i].Load()
	}
	if at := p.stats.lastMint.Load(); at != 0 {
		s.LastMint = new(time.Unix(0, at))
	}
	s.CachedTokens, s.CachedBytes = p.cache.size()
	if until, cause := p.minter.HeldBack(now); cause != nil {
		s.BackOff = &errorStatus{Until: new(until.Wall()), Reason: string(cause.Reason), Error: cause.Error()}
	}
	s.FailingSince, s.LastError = p.stats.minting.status()
	return s
}

// purge forgets the tokens of one document or all, in every pool.
func (adminAPI) purge(w http.ResponseWriter, r *http.Request) error {
	if err := allowOnly(http.MethodPost, w, r); err != nil {
		return err
	}
	documentID, err := readPurge(http.MaxBytesReader(w, r.Body, maxPurgeBytes))
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
	}
	var purged struct {
		Purged int    `json:"purged"`
		Note   string `json:"note"`
	}
	for _, p := range allPools() {
		purged.Purged += p.purge(documentID)
	}
	purged.Note = "Only this process has forgotten them: a shared store keeps its entries, and tokens that browsers hold stay valid until they expire."
	return writeAdminJSON(w, purged)
}

// readPurge returns the document to purge, or nothing for all. The body is an
// object with exactly one member: of two, one would not be what was meant.
func readPurge(body io.Reader) (documentID string, err error) {
	text, err := io.ReadAll(body)
	if err != nil {
		return "", fmt.Errorf("reading the request: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	var value any
	begin, err1 := dec.Token()
	name, err2 := dec.Token()
	err3 := dec.Decode(&value)
	end, err4 := dec.Token()
	_, err5 := dec.Token()
	if errors.Join(err1, err2, err3, err4) == nil && begin == json.Delim('{') && end == json.Delim('}') && errors.Is(err5, io.EOF) {
		if id, ok := value.(string); ok && name == "document_id" && id != "" {
			return id, nil
		}
		if name == "all" && value == true {
			return "", nil
		}
	}
	return "", errors.New(`say what to purge: {"document_id": "ID"} or {"all": true}, and nothing else`)
}

func allowOnly(method string, w http.ResponseWriter, r *http.Request) error {
	if r.Method == method {
		return nil
	}
	w.Header().Set("Allow", method)
	return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("use %s", method)}
}

func writeAdminJSON(w http.ResponseWriter, value any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	return enc.Encode(value)
}

// Interface guards
var _ caddy.AdminRouter = adminAPI{}
