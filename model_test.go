package viewersession

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// TestAgainstModel takes thousands of random steps and compares each with a
// simple model of what may be injected at that moment. A failing run prints
// its seed; VIEWER_SESSION_SEED repeats it.
func TestAgainstModel(t *testing.T) {
	seeds := []uint64{rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64()}
	if text := os.Getenv("VIEWER_SESSION_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	results := make(map[string]int)
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(t, seed)
				m.results = results
				defer m.end()
				for m.steps = range 3000 {
					m.step()
				}
			})
		})
	}
	t.Log(results)
	for _, want := range []string{"hit", "renewing", "minted", "stale", "unavailable", "timeout", "throttled", "rejected", "key_refused", "invalid_reply", "purged", "previous key's"} {
		if results[want] == 0 && len(seeds) > 1 {
			t.Errorf("%s never came about, so it was not tested", want)
		}
	}
}

// model is what is known of the world outside the pool.
type model struct {
	t     *testing.T
	rand  *rand.Rand
	steps int

	pool   *pool
	member *member
	api    *dwstest.API // shared by all configs
	key    string       // what {file} gives
	keys   []string     // all that it gave
	file   string

	mu         sync.Mutex // the API answers in goroutines of their own
	fault      string
	faultSince time.Time // of the present fault, or of health
	grant      time.Duration

	issued map[string]issue // by token
	latest map[string]issue // what the cache must have, by document, user and key
	purges map[string]int   // by document

	results map[string]int // how often each came about
}

// issue is a token that the API issued.
type issue struct {
	name, key string
	document  string
	purges    int // of the document, when it was asked for
	exp       int64
	life      time.Duration
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rand: rand.New(rand.NewPCG(seed, 0)), api: new(dwstest.API), key: "pdf_live_test0", file: t.TempDir() + "/key",
		issued: make(map[string]issue), latest: make(map[string]issue), purges: make(map[string]int), faultSince: time.Now(),
	}
	m.writeKey()
	m.api.Set(m.answer)
	m.join()
	return m
}

func (m *model) settings() poolSettings {
	s := testSettings(m.t)
	s.apiKey = "{file." + m.file + "}"
	return s
}

func (m *model) join() {
	m.member = newMember(m.api, nil, zap.NewNop(), m.key)
	p, err := joinPool(m.settings(), testEndpoint, m.member, clock.Now)
	if err != nil {
		m.t.Fatal(err)
	}
	if m.pool != nil && p != m.pool {
		m.t.Fatalf("step %d: a reload got another pool", m.steps)
	}
	m.pool = p
}

func (m *model) end() {
	if err := m.pool.leave(m.member); err != nil {
		m.t.Error(err)
	}
	time.Sleep(time.Minute) // whatever is under way
}

func (m *model) writeKey() {
	m.keys = append(m.keys, m.key)
	if err := os.WriteFile(m.file, []byte(m.key), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) answer(r dwstest.Request) (*http.Response, error) {
	m.mu.Lock()
	fault, current, grant, purges := m.fault, m.key, m.grant, m.purges[r.Document]
	m.mu.Unlock()
	name := r.Document + "/" + r.User
	key := strings.TrimPrefix(r.Key, "Bearer ")
	if key != current {
		return dwstest.Failing(401)(r)
	}
	switch fault {
	case "refused":
		return dwstest.Unreachable(r)
	case "500":
		return dwstest.Failing(500)(r)
	case "403":
		return dwstest.Failing(403)(r)
	case "422":
		return dwstest.Failing(422)(r)
	case "429":
		return dwstest.Failing(429, "Retry-After", "20")(r)
	case "hang":
		return dwstest.Hanging(r)
	case "slow":
		time.Sleep(3 * time.Second)
	case "rubbish":
		return dwstest.Respond(200, `{"jwt":"a.b"}`)
	case "expired":
		return dwstest.Grant(dwstest.JWT(map[string]any{"exp": time.Now().Unix()}))
	case "another's":
		return dwstest.Grant(dwstest.JWT(map[string]any{"exp": r.Exp, "document_id": "another"}))
	}
	exp := r.Exp
	if grant > 0 {
		exp = time.Now().Add(grant).Unix()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	jwt := dwstest.JWT(map[string]any{"exp": exp, "document_id": r.Document, "jti": len(m.issued)})
	made := issue{name: name, key: key, document: r.Document, purges: purges, exp: exp, life: time.Until(time.Unix(exp, 0))}
	m.issued[jwt] = made
	if purges == m.purges[r.Document] {
		m.latest[name+"/"+key] = made
	}
	return dwstest.Grant(jwt)
}

func (m *model) step() {
	n := m.rand.IntN(100)
	if n < 70 {
		m.request()
		synctest.Wait()
		return
	}
	if n < 89 {
		most := []time.Duration{5 * time.Second, 5 * time.Second, 5 * time.Second, 15 * time.Minute, 90 * time.Minute}[m.rand.IntN(5)]
		time.Sleep(time.Duration(m.rand.Int64N(int64(most))))
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case n < 90:
		m.purge()
	case n < 95:
		m.setFault()
	case n < 96:
		m.grant = []time.Duration{0, 0, 2 * time.Minute, 10 * time.Minute}[m.rand.IntN(4)]
	case n < 98: // a reload
		old := m.member
		m.join()
		if err := m.pool.leave(old); err != nil {
			m.t.Error(err)
		}
	case n < 99: // a reload that is refused
		current := m.member
		m.join()
		if err := m.pool.leave(m.member); err != nil {
			m.t.Error(err)
		}
		m.member = current
	default: // the key is rotated, and the old one refused from now on
		m.key = fmt.Sprintf("pdf_live_test%d", m.steps)
		m.writeKey()
		m.faultSince = time.Now()
	}
}

// provenKey is the key whose tokens are looked up.
func (m *model) provenKey() string { return m.keyOf(m.pool.keys.current.Load()) }

// previousKeys are those whose tokens were looked up before.
func (m *model) previousKeys() (keys []string) {
	if previous := m.pool.keys.previous.Load(); previous != nil {
		for _, id := range *previous {
			keys = append(keys, m.keyOf(&id))
		}
	}
	return keys
}

func (m *model) keyOf(id *mint.KeyID) string {
	for _, key := range m.keys {
		if mint.NewKey(key).ID == *id {
			return key
		}
	}
	m.t.Fatal("tokens of a key that never was are looked up")
	return ""
}

func (m *model) setFault() {
	faults := []string{"", "", "", "", "refused", "500", "403", "422", "429", "hang", "slow", "rubbish", "expired", "another's"}
	m.fault = faults[m.rand.IntN(len(faults))]
	m.faultSince = time.Now()
}

const modelDocuments = 6

// purge forgets one document's tokens, or all.
func (m *model) purge() {
	only := ""
	if m.rand.IntN(4) > 0 {
		only = fmt.Sprint("doc", m.rand.IntN(modelDocuments))
	}
	for i := range modelDocuments {
		if document := fmt.Sprint("doc", i); only == "" || only == document {
			m.purges[document]++
		}
	}
	maps.DeleteFunc(m.latest, func(_ string, made issue) bool { return made.purges < m.purges[made.document] })
	m.pool.purge(only)
	m.results["purged"]++
}

func (m *model) request() {
	document, user := fmt.Sprint("doc", m.rand.IntN(modelDocuments)), []string{"", "alice", "bob"}[m.rand.IntN(3)]
	a := testClaims(document)
	a.UserID = user
	name := document + "/" + user
	used, previous := m.provenKey(), m.previousKeys()
	m.mu.Lock()
	before, calls := m.latest[name+"/"+used], m.api.Count()
	var older issue // that lasts longest
	for _, key := range previous {
		if one := m.latest[name+"/"+key]; one.exp > older.exp {
			older = one
		}
	}
	m.mu.Unlock()
	start := time.Now()
	tok, result, f := m.pool.get(m.t.Context(), a)
	took := time.Since(start)
	if f != nil {
		m.results[string(f.reason)]++
	} else {
		m.results[result.String()]++
	}
	complain := func(format string, args ...any) {
		m.t.Helper()
		m.t.Fatalf("step %d, fault %q for %s, %s: %s", m.steps, m.fault, start.Sub(m.faultSince), name, fmt.Sprintf(format, args...))
	}
	if took > defaultTimeout {
		complain("it took %s", took)
	}

	remaining := time.Unix(before.exp, 0).Sub(start)
	minRemaining := a.MinRemaining
	if before.life < a.TTL {
		minRemaining = time.Duration(float64(minRemaining) * float64(before.life) / float64(a.TTL))
	}

	// Whoever has a valid token gets one, whatever the API does.
	if f != nil {
		if remaining > took {
			complain("%v, although a token is valid for another %s", f, remaining)
		}
		if left := time.Unix(older.exp, 0).Sub(start); left > took && f.reason.apiTrouble() {
			complain("%v, although a previous key's token is valid for another %s", f, left)
		}
		// With the API well for longer than any back-off, there is a token.
		if m.fault == "" && start.Sub(m.faultSince) > 40*time.Second {
			complain("%v, although the API is well", f)
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Contains(previous, m.issued[tok.jwt()].key) {
		m.results["previous key's"]++
	}
	// A token is one that the API issued for just this, and it has not expired.
	made, ok := m.issued[tok.jwt()]
	switch {
	case !ok:
		complain("the API never issued the token")
	case made.name != name:
		complain("the token was issued for %s", made.name)
	case made.key != used && made.key != m.key && (!slices.Contains(previous, made.key) || result != resultStale):
		complain("the token was issued under the key %s", made.key)
	case made.purges < m.purges[document]:
		complain("the token was purged")
	case made.exp <= time.Now().Unix():
		complain("the token expired %s ago", time.Since(time.Unix(made.exp, 0)))
	}
	// A token that is far from its renewal is used without a call.
	// Its life counts from when it was asked for.
	if renewal := time.Duration(float64(before.life+defaultTimeout+minRemaining) / 2 * (1 + renewalSpread)); remaining > renewal {
		if m.api.Count() != calls || result != resultHit || took > 0 {
			complain("result %s after %s and %d calls, although a fresh token was there", result, took, m.api.Count()-calls)
		}
	}
	// One that runs short is used only if none can be minted.
	if left := time.Until(time.Unix(made.exp, 0)); m.fault == "" && start.Sub(m.faultSince) > mint.BadNewsAge+40*time.Second {
		need := a.MinRemaining
		if made.life < a.TTL {
			need = time.Duration(float64(need) * float64(made.life) / float64(a.TTL))
		}
		if left < need {
			complain("a token with %s left, although the API is well", left)
		}
	}
}
