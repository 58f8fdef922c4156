package integration

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

func jwtBody(payload string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return `{"jwt":"` + encode([]byte(`{"alg":"none"}`)) + "." + encode([]byte(payload)) + `.c2ln"}`
}

// worst is a way in which the API fails, and what the client sees for a
// document that is not cached.
type worst struct {
	name   string
	fault  emulator.Fault
	status int // 200 for a token
}

func worstAPI(elsewhere string) []worst {
	now := time.Now().Unix()
	list := []worst{
		{"hangs", emulator.Fault{Mode: "hang"}, 504},
		{"is slow", emulator.Fault{Delay: caddy.Duration(100 * time.Millisecond)}, 200},
		{"is too slow", emulator.Fault{Delay: caddy.Duration(10 * time.Second)}, 504},
		{"drips", emulator.Fault{Mode: "drip", Delay: caddy.Duration(100 * time.Millisecond)}, 504},
		{"breaks off", emulator.Fault{Mode: "break_off"}, 502},
		{"answers with 10 MB", emulator.Fault{Mode: "huge"}, 502},
		{"answers with HTML", emulator.Fault{Mode: "rubbish"}, 502},
		{"answers with nothing", emulator.Fault{Mode: "empty"}, 502},
		{"redirects", emulator.Fault{Mode: "redirect", Location: "http://" + elsewhere + "/viewer/sessions"}, 502},
		{"throttles for a second", emulator.Fault{Mode: "status", Status: 429, RetryAfter: "1"}, 503},
		{"throttles until a date", emulator.Fault{Mode: "status", Status: 503, RetryAfter: time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)}, 503},
		{"throttles with nonsense", emulator.Fault{Mode: "status", Status: 429, RetryAfter: "soon"}, 503},
		{"throttles without a time", emulator.Fault{Mode: "status", Status: 429}, 503},
	}
	for _, status := range []int{400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 415, 418, 422, 423, 451, 500, 501, 502, 503, 504, 507, 599} {
		list = append(list, worst{fmt.Sprint("answers ", status), emulator.Fault{Mode: "status", Status: status}, 502})
	}
	for payload, status := range map[string]int{
		`{}`: 200, `{"exp":null}`: 200, fmt.Sprintf(`{"exp":%d}`, now+3600): 200, fmt.Sprintf(`{"exp":%d.5}`, now+60): 200, `{"exp":99999999999}`: 200,
		`{"exp":1}`: 502, `{"exp":0}`: 502, `{"exp":-1}`: 502, `{"exp":"1"}`: 502, `{"exp":{}}`: 502, `[]`: 502, `null`: 502, `"x"`: 502, `{`: 502, ``: 502,
		`{"document_id":"another"}`: 502, `{"allowed_documents":[{"document_id":"another"}]}`: 502, `{"user_id":"somebody"}`: 502,
	} {
		list = append(list, worst{"token of " + payload, emulator.Fault{Mode: "body", Body: jwtBody(payload)}, status})
	}
	for _, body := range []string{
		`{}`, `{"jwt":""}`, `{"jwt":null}`, `{"jwt":1}`, `{"JWT":"a.e30.c"}`, `{"token":"a.e30.c"}`, `[]`, `"a.e30.c"`, `{"jwt":"a.e30.c"`,
		`{"jwt":"a.e30"}`, `{"jwt":"a.e30.c.d"}`, `{"jwt":"a.e30.c\r\nX-Evil: 1"}`, `{"jwt":"a.e30.c; evil=1"}`, `{"jwt":"a.e30.ü"}`, `{"jwt":"a. .c"}`,
		`{"jwt":"a.e30.` + strings.Repeat("c", 9000) + `"}`, `{"jwt":"a.e30.c","x":"` + strings.Repeat("c", 70_000) + `"}`,
	} {
		list = append(list, worst{fmt.Sprintf("answers %.40s", body), emulator.Fault{Mode: "body", Body: body}, 502})
	}
	return list
}

const patientSite = `GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		mint_rate off
		timeout 2s
		document_path /documents/:id
	}
	reverse_proxy APP
}
`

// Each way to fail, with the deadline taking effect, a cached document being
// served all the while, and a token as soon as the API is well again.
func TestAPIAtItsWorst(t *testing.T) {
	elsewhere := newApp(t)
	for i, w := range worstAPI(elsewhere.address) {
		t.Run(w.name, func(t *testing.T) {
			s := newStage(t)
			s.load(patientSite)
			cached := s.token("/documents/cached")
			s.api.SetFault(w.fault)
			cold := fmt.Sprint("/documents/cold", i)
			start := time.Now()
			resp, _ := s.do("GET", cold)
			if resp.StatusCode != w.status {
				t.Errorf("status %d, want %d", resp.StatusCode, w.status)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("a timeout of 2s took %s", took)
			}
			if (resp.Header.Get("Retry-After") != "") != (w.status == 503) {
				t.Errorf("Retry-After %q with status %d", resp.Header.Get("Retry-After"), w.status)
			}
			if s.token("/documents/cached") != cached {
				t.Error("the cached token is not used")
			}
			s.api.SetFault(emulator.Fault{})
			s.eventually(cold + "-other")
			if seen := elsewhere.all(); len(seen) != 0 {
				t.Errorf("a redirect was followed:\n%s", seen[0].head)
			}
		})
	}
}

// The same at random, several at a time. VIEWER_SESSION_SEED repeats a run.
func TestAPIAtItsWorstAtRandom(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("VIEWER_SESSION_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	elsewhere := newApp(t)
	list := worstAPI(elsewhere.address)
	s := newStage(t)
	s.load(patientSite)
	cached := s.token("/documents/cached")
	for i := range 60 {
		fault := list[random.IntN(len(list))].fault
		fault.Times = 1 + random.IntN(3)
		s.api.SetFault(fault)
		for j := range 1 + random.IntN(4) {
			resp, _ := s.do("GET", fmt.Sprintf("/documents/cold%d-%d", i, j))
			switch resp.StatusCode {
			case 200:
				s.app.last().token(t)
			case 502, 503, 504:
			default:
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		if s.token("/documents/cached") != cached {
			t.Fatal("the cached token is not used")
		}
	}
	s.api.SetFault(emulator.Fault{})
	s.eventually("/documents/well-again")
	if len(elsewhere.all()) != 0 {
		t.Error("a redirect was followed")
	}
}
