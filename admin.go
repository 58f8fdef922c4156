package viewersession

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2"
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
		{Pattern: "/viewer_session/purge", Handler: caddy.AdminHandlerFunc(a.purge)},
	}
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
