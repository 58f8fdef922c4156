package integration

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/viewersession/caddy-viewer-session"
	"github.com/viewersession/caddy-viewer-session/emulator"
)

// standIn is the API stand-in behind an address, with a list of the tokens it issued.
type standIn struct {
	*emulator.Emulator
	url     string
	address string
	stop    func()

	mu     sync.Mutex
	tokens []string
	asked  []mintRequest
}

// mintRequest is what the API was asked for.
type mintRequest struct {
	AllowedDocuments []struct {
		DocumentID  string   `json:"document_id"`
		Permissions []string `json:"document_permissions"`
	} `json:"allowed_documents"`
	UserID string `json:"user_id"`
	Claim  any    `json:"claim"`

	traceparent string
}

func (s *standIn) record(r *http.Request, body []byte) {
	var asked mintRequest
	err := json.Unmarshal(body, &asked)
	asked.traceparent = r.Header.Get("Traceparent")
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.asked = append(s.asked, asked)
	}
}

// minted returns what the API was asked for since the last call.
func (s *standIn) minted() []mintRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func newStandIn(t *testing.T, options emulator.Options) *standIn {
	t.Helper()
	s := new(standIn)
	options.OnMint = s.record
	s.Emulator = emulator.New(options)
	srv := httptest.NewServer(s)
	s.url, s.address = srv.URL, srv.Listener.Addr().String()
	s.stop = sync.OnceFunc(func() {
		s.Close()
		srv.CloseClientConnections()
		srv.Close()
	})
	t.Cleanup(s.stop)
	return s
}

// restart listens on the old address again.
func (s *standIn) restart(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: s}} //nolint:gosec // a test's
	srv.Start()
	t.Cleanup(srv.Close)
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Emulator.ServeHTTP(&tokenRecorder{ResponseWriter: w, standIn: s}, r)
}

type tokenRecorder struct {
	http.ResponseWriter
	standIn *standIn
}

func (r *tokenRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *tokenRecorder) Write(p []byte) (int, error) {
	var reply struct {
		JWT string `json:"jwt"`
	}
	if json.Unmarshal(p, &reply) == nil && reply.JWT != "" {
		r.standIn.mu.Lock()
		r.standIn.tokens = append(r.standIn.tokens, reply.JWT)
		r.standIn.mu.Unlock()
	}
	return r.ResponseWriter.Write(p)
}

func (s *standIn) issued() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.tokens...)
}
