//go:build unix

package redis

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	viewersession "github.com/viewersession/caddy-viewer-session"
	"github.com/viewersession/caddy-viewer-session/internal/redistest"
)

const (
	testKey      = "the-encryption-key-of-these-tests-1234567890"
	otherKey     = "another-encryption-key-of-these-tests-123456"
	testPassword = "a-password-that-nobody-may-see"
	testToken    = "eyJhbGciOiJub25lIn0.eyJkb2MiOiJzZWNyZXQifQ.c2lnbmF0dXJl" //nolint:gosec // made up
	testName     = "account, lease-2026, and alice, who reads it"
)

var secrets = []string{testKey, otherKey, testPassword, testToken, "lease-2026", "alice"}

func TestMain(m *testing.M) {
	openFor, closeAfter = 200*time.Millisecond, 500*time.Millisecond
	for name, value := range map[string]string{"TEST_ENCRYPTION_KEY": testKey, "TEST_OTHER_KEY": otherKey, "TEST_PASSWORD": testPassword} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// storeTest is a store with a log, in which no secret may stand.
type storeTest struct {
	*Store
	t    *testing.T
	logs *observer.ObservedLogs
	end  func() // as a reload would
}

// newStore loads a store as a Caddyfile does. In the text, ADDRESS stands for
// the servers, and a line with the encryption key is added if there is none.
func newStore(t *testing.T, text string, servers ...*redistest.Server) *storeTest {
	t.Helper()
	s, err := tryStore(t, text, servers...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryStore(t *testing.T, text string, servers ...*redistest.Server) (*storeTest, error) {
	t.Helper()
	var addresses []string
	for _, server := range servers {
		addresses = append(addresses, server.Address)
	}
	text = strings.Replace("address ADDRESS\n"+text, "ADDRESS", strings.Join(addresses, " "), 1)
	if !strings.Contains(text, "encryption_key") {
		text += "\nencryption_key {env.TEST_ENCRYPTION_KEY}"
	}
	parsed := new(Store)
	if err := parsed.UnmarshalCaddyfile(caddyfile.NewTestDispenser("redis {\n" + text + "\n}")); err != nil {
		return nil, err
	}
	config, err := json.Marshal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range secrets {
		if strings.Contains(string(config), secret) {
			t.Errorf("the config holds %q: %s", secret, config)
		}
	}
	core, logs := observer.New(zap.DebugLevel)
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	mod, err := ctx.LoadModuleByID("http.handlers.viewer_session.stores.redis", config)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &storeTest{Store: mod.(*Store), t: t, logs: logs, end: sync.OnceFunc(cancel)}
	s.Store.logger = zap.New(core) // Caddy's own has no way in
	t.Cleanup(func() {
		s.end()
		for _, entry := range logs.All() {
			s.wantNoSecret(entry.Message + fmt.Sprint(entry.ContextMap()))
		}
	})
	return s, nil
}

func (s *storeTest) wantNoSecret(text string) {
	s.t.Helper()
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			s.t.Errorf("%q holds %q", text, secret)
		}
	}
}

// tryAcquire is Acquire with what errors may say looked at.
func (s *storeTest) tryAcquire(name, stale string) (viewersession.Acquired, error) {
	s.t.Helper()
	got, err := s.Acquire(s.t.Context(), name, stale, time.Minute)
	if err != nil {
		s.wantNoSecret(err.Error())
	}
	return got, err
}

func (s *storeTest) acquire(name, stale string) viewersession.Acquired {
	s.t.Helper()
	got, err := s.tryAcquire(name, stale)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// wantLock acquires a name that nobody has, and returns the lock.
func (s *storeTest) wantLock(name, stale string) string {
	s.t.Helper()
	got := s.acquire(name, stale)
	if got.Lock == "" || got.Entry != nil {
		s.t.Fatalf("got %+v, want the lock", got)
	}
	return got.Lock
}

func (s *storeTest) wantEntry(name, want string) viewersession.Acquired {
	s.t.Helper()
	got := s.acquire(name, "")
	if string(got.Entry) != want || got.Lock != "" || got.Version == "" {
		s.t.Fatalf("got %+v, want %q", got, want)
	}
	return got
}

func (s *storeTest) wantHeld(name, stale string) {
	s.t.Helper()
	if got := s.acquire(name, stale); got.Entry != nil || got.Lock != "" {
		s.t.Fatalf("got %+v, want that somebody else has the lock", got)
	}
}

func (s *storeTest) put(name, lock, entry string, ttl time.Duration) {
	s.t.Helper()
	if err := s.Put(s.t.Context(), name, lock, []byte(entry), ttl); err != nil {
		s.t.Fatal(err)
	}
}

// everyMake runs a test with a server of each make that there is.
func everyMake(t *testing.T, test func(t *testing.T, server *redistest.Server)) {
	for _, binary := range redistest.Binaries(t) {
		t.Run(binary, func(t *testing.T) { test(t, redistest.StartBinary(t, binary)) })
	}
}

// What viewersession.Store promises.
func TestStore(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		testStore(t, newStore(t, "", server), newStore(t, "timeout 200ms", server))
	})
}

func testStore(t *testing.T, one, two *storeTest) {
	t.Helper()
	lock := one.wantLock(testName, "")
	two.wantHeld(testName, "")
	one.wantHeld(testName, "") // a lock is not given twice, not even to the same
	two.wantLock("another name", "")

	if err := two.Release(t.Context(), testName, "not the lock"); err != nil {
		t.Fatal(err)
	}
	two.wantHeld(testName, "")

	one.put(testName, lock, testToken, time.Minute)
	first := two.wantEntry(testName, testToken)
	if again := one.wantEntry(testName, testToken); again.Version != first.Version {
		t.Error("the same entry has another version")
	}

	// A stale entry is as good as none; others find it until it is replaced.
	lock = one.wantLock(testName, first.Version)
	two.wantHeld(testName, first.Version)
	two.wantEntry(testName, testToken)
	one.put(testName, lock, "another", time.Minute)
	second := two.acquire(testName, first.Version)
	if string(second.Entry) != "another" || second.Version == first.Version {
		t.Errorf("got %+v", second)
	}

	// Given back without an entry, the lock is free; without a lock, an entry
	// is stored, and leaves the lock to whoever has it.
	lock = one.wantLock(testName, second.Version)
	if err := one.Release(t.Context(), testName, lock); err != nil {
		t.Fatal(err)
	}
	lock = two.wantLock(testName, second.Version)
	one.put(testName, "", "third", time.Minute)
	third := two.wantEntry(testName, "third")
	one.wantHeld(testName, third.Version)
	one.put(testName, "not the lock", "fourth", time.Minute)
	one.wantHeld(testName, two.wantEntry(testName, "fourth").Version)
	two.put(testName, lock, "fifth", time.Minute)
	one.wantLock(testName, one.wantEntry(testName, "fifth").Version)
}

// Entries and locks end by themselves, at the server.
func TestEntriesAndLocksEnd(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		s := newStore(t, "", server)
		s.put("entry", "", "short", 300*time.Millisecond)
		s.wantEntry("entry", "short")
		if _, err := s.Acquire(t.Context(), "lock", "", 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		s.wantHeld("lock", "")
		s.put("longer", "", "x", time.Hour)
		s.wantLock("other", "")
		var ttls []string
		for key := range strings.SplitSeq(server.Must("KEYS", "*"), "\n") {
			ttls = append(ttls, server.Must("PTTL", key))
		}
		for _, ttl := range ttls {
			if strings.HasPrefix(ttl, "-") {
				t.Errorf("something stays for ever: %v", ttls)
			}
		}
		deadline := time.Now().Add(10 * time.Second)
		for _, name := range []string{"entry", "lock"} {
			for {
				if got := s.acquire(name, ""); got.Lock != "" {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s does not end", name)
				}
				time.Sleep(10 * time.Millisecond) // the server's clock cannot be moved
			}
		}
	})
}

// Whoever reads the server's memory, disk or traffic sees neither tokens nor
// who looks at what.
func TestNothingReadableInADump(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		s := newStore(t, "", server)
		s.wantLock("locked: "+testName, "")
		for i := range 20 {
			s.put(fmt.Sprint(testName, i), "", testToken, time.Hour)
		}
		server.Must("SAVE")
		dump, err := os.ReadFile(filepath.Join(server.Dir(), "dump.rdb"))
		if err != nil {
			t.Fatal(err)
		}
		keys := server.Must("KEYS", "*")
		if count := strings.Count(keys, "viewer_session:"); count != 21 {
			t.Fatalf("%d keys: %s", count, keys)
		}
		readable := []string{testToken, "eyJ", "account", "lease-2026", "alice", testKey, "signature"}
		for _, secret := range readable {
			if bytes.Contains(dump, []byte(secret)) || strings.Contains(keys, secret) {
				t.Errorf("%q stands in the dump", secret)
			}
		}
		// The same text is found if it is there.
		server.Must("SET", "plain", testToken+" account lease-2026 alice "+testKey+" signature")
		server.Must("CONFIG", "SET", "rdbcompression", "no")
		server.Must("SAVE")
		if dump, err = os.ReadFile(filepath.Join(server.Dir(), "dump.rdb")); err != nil {
			t.Fatal(err)
		}
		for _, secret := range readable {
			if !bytes.Contains(dump, []byte(secret)) {
				t.Errorf("%q is not found although it is there", secret)
			}
		}
		// Equal entries do not look equal.
		values := make(map[string]bool)
		for i := range 20 {
			values[server.Must("GET", s.entryKey(s.sealers[0].name(fmt.Sprint(testName, i))))] = true
		}
		if len(values) != 20 {
			t.Errorf("%d different values for 20 entries", len(values))
		}
	})
}

// Whoever can write to the server cannot give one user another's token.
func TestTamperedEntriesAreRefused(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, "", server)
	keyOf := func(name string) string { return s.entryKey(s.sealers[0].name(name)) }
	s.put("alice's", "", "token of alice", time.Hour)
	s.put("eve's", "", "token of eve", time.Hour)
	good := server.Must("GET", keyOf("alice's"))
	stranger := newStore(t, "encryption_key {env.TEST_OTHER_KEY}", server)
	strange, err := stranger.sealers[0].seal(s.sealers[0].name("alice's"), []byte("made up"))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) string {
		b := []byte(good)
		b[at] ^= 1
		return string(b)
	}
	for what, value := range map[string]string{
		"another's":                     server.Must("GET", keyOf("eve's")),
		"text":                          "token of alice",
		"nothing":                       "",
		"one byte":                      "\x01",
		"cut short":                     good[:len(good)-1],
		"longer":                        good + "x",
		"only the prefix":               good[:prefixBytes],
		"another format":                flip(0),
		"another key's id":              flip(1),
		"another nonce":                 flip(headerBytes),
		"a changed entry":               flip(prefixBytes),
		"a changed tag":                 flip(len(good) - 1),
		"made by one with another key":  string(strange),
		"that, with this key's id":      good[:headerBytes] + string(strange[headerBytes:]),
		"that of the same name's other": good[:prefixBytes] + string(strange[prefixBytes:]),
	} {
		server.Must("SET", keyOf("alice's"), value)
		got := s.acquire("alice's", "")
		if got.Entry != nil || got.Lock == "" {
			t.Errorf("%s: got %+v", what, got)
		}
		if err := s.Release(t.Context(), "alice's", got.Lock); err != nil {
			t.Fatal(err)
		}
	}
	server.Must("SET", keyOf("alice's"), good)
	s.wantEntry("alice's", "token of alice")

	if logged := s.logs.FilterMessageSnippet("refused an entry"); logged.Len() != 1 || logged.All()[0].Level != zapcore.ErrorLevel {
		t.Errorf("logged %d times", logged.Len())
	}
}

// Gateways with the new key read what others still write with the old one.
func TestRotatedEncryptionKey(t *testing.T) {
	server := redistest.Start(t)
	before := newStore(t, "", server)
	after := newStore(t, "encryption_key {env.TEST_OTHER_KEY} {env.TEST_ENCRYPTION_KEY}", server)
	alone := newStore(t, "encryption_key {env.TEST_OTHER_KEY}", server)

	before.put("doc", "", "old", time.Hour)
	old := after.wantEntry("doc", "old")
	after.wantEntry("doc", "old") // no lock is left behind
	lock := alone.wantLock("doc", "")
	after.wantEntry("doc", "old") // although somebody has the lock
	if err := alone.Release(t.Context(), "doc", lock); err != nil {
		t.Fatal(err)
	}
	lock = after.wantLock("doc", old.Version)
	after.put("doc", lock, "new", time.Hour)
	after.wantEntry("doc", "new")
	alone.wantEntry("doc", "new")
	before.wantEntry("doc", "old")

	server.Must("SET", after.entryKey(after.sealers[1].name("damaged")), "x")
	after.wantLock("damaged", "")
}

// Each of the two bonds between an entry and its name holds on its own.
func TestEntriesAreBoundToTheirName(t *testing.T) {
	s, err := newSealer(testKey)
	if err != nil {
		t.Fatal(err)
	}
	one, err1 := s.aead("one")
	two, err2 := s.aead("two")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, nonceBytes)
	sealed := one.Seal(nil, nonce, []byte("entry"), s.associated("one"))
	if _, err := one.Open(nil, nonce, sealed, s.associated("one")); err != nil {
		t.Error(err)
	}
	if _, err := one.Open(nil, nonce, sealed, s.associated("two")); err == nil {
		t.Error("the name is not part of the associated data")
	}
	if _, err := two.Open(nil, nonce, sealed, s.associated("one")); err == nil {
		t.Error("two names have the same key")
	}
}

func TestKeysMakeNoDifferenceBetweenGateways(t *testing.T) {
	one, err1 := newSealer(testKey)
	two, err2 := newSealer(testKey)
	other, err3 := newSealer(otherKey)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if one.name("doc") != two.name("doc") || one.header != two.header {
		t.Error("the same key gives other names")
	}
	if one.name("doc") == other.name("doc") || one.header == other.header || one.name("doc") == one.name("doc2") {
		t.Error("another key or name gives the same name")
	}
	sealed, err := one.seal("name", []byte("entry"))
	if err != nil {
		t.Fatal(err)
	}
	if entry, err := two.open("name", sealed); err != nil || string(entry) != "entry" {
		t.Errorf("got %q, %v", entry, err)
	}
}

// While keys are rotated there may be two entries, neither of which is wanted.
func TestTwoUnwantedEntriesWhileKeysAreRotated(t *testing.T) {
	server := redistest.Start(t)
	before := newStore(t, "", server)
	after := newStore(t, "encryption_key {env.TEST_OTHER_KEY} {env.TEST_ENCRYPTION_KEY}", server)
	before.put("doc", "", "old", time.Hour)
	after.put("doc", "", "new", time.Hour)
	after.wantLock("doc", after.wantEntry("doc", "new").Version)
}

func TestRenewedCertificatesNeedAReload(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	a.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	port := strconv.Itoa(redistest.FreePort(t))
	redistest.Start(t, "--tls-port", port, "--tls-cert-file", a.file("server.pem"), "--tls-key-file", a.file("server.key"),
		"--tls-ca-cert-file", a.file("ca.pem"), "--tls-auth-clients", "no")
	trusted := filepath.Join(t.TempDir(), "ca.pem")
	copyFile := func(from string) {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(trusted, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	load := func() *storeTest {
		return newStore(t, "timeout 1s\ntls {\ntrust_pool file "+trusted+"\n}", &redistest.Server{Address: "127.0.0.1:" + port})
	}
	copyFile(b.file("ca.pem"))
	if _, err := load().tryAcquire("doc", ""); err == nil {
		t.Fatal("a stranger's certificate is trusted")
	}
	copyFile(a.file("ca.pem"))
	load().wantLock("doc", "")
}

// Only looking takes no lock, and an entry comes with the time it has left.
func TestLookTakesNoLock(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		s := newStore(t, "", server)
		look := func(name string) viewersession.Acquired {
			got, err := s.Acquire(t.Context(), name, "", 0)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if got := look(testName); got.Lock != "" || got.Entry != nil {
			t.Errorf("got %+v", got)
		}
		s.put(testName, s.wantLock(testName, ""), testToken, time.Minute)
		if got := look(testName); string(got.Entry) != testToken || got.TTL <= 50*time.Second || got.TTL > time.Minute {
			t.Errorf("got %+v", got)
		}
		if got := s.acquire(testName, ""); got.TTL <= 50*time.Second || got.TTL > time.Minute {
			t.Errorf("got %+v", got)
		}
		// A user who may not ask for it does without.
		server.Must("ACL", "SETUSER", "default", "-pttl")
		defer server.Must("ACL", "SETUSER", "default", "+pttl")
		if got := s.acquire(testName, ""); string(got.Entry) != testToken || got.TTL != 0 {
			t.Errorf("without the right to ask: %+v", got)
		}
	})
}
