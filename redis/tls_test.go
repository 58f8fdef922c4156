//go:build unix

package redis

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/redistest"
)

// authority is a certificate authority with its files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes name.pem and name.key.
func (a *authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func TestTLSWithUser(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"redis.internal"}})
	a.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})

	for _, binary := range redistest.Binaries(t) {
		t.Run(binary, func(t *testing.T) {
			port := strconv.Itoa(redistest.FreePort(t))
			server := redistest.StartBinary(t, binary,
				"--tls-port", port, "--tls-cert-file", a.file("server.pem"), "--tls-key-file", a.file("server.key"),
				"--tls-ca-cert-file", a.file("ca.pem"), "--tls-auth-clients", "yes",
				"--user", "default", "on", "nopass", "~*", "&*", "+@all",
				"--user", "gateway", "on", ">"+testPassword, "~viewer_session:*", "+get", "+set", "+del", "+eval", "+evalsha", "+ping")
			store := func(text string) *storeTest {
				t.Helper()
				text = strings.NewReplacer("CA", a.file("ca.pem"), "CERT", a.file("client.pem"), "KEY", a.file("client.key")).Replace(text)
				return newStore(t, "timeout 1s\nusername gateway\npassword {env.TEST_PASSWORD}\nencryption_key {env.TEST_ENCRYPTION_KEY}\n"+text,
					&redistest.Server{Address: "127.0.0.1:" + port})
			}
			good := "tls {\ntrust_pool file CA\nclient_auth CERT KEY\n}"
			s := store(good)
			lock := s.wantLock("doc", "")
			s.put("doc", lock, "entry", time.Minute)
			s.wantEntry("doc", "entry")
			store("tls {\ntrust_pool file CA\nclient_auth CERT KEY\nserver_name redis.internal\n}").wantEntry("doc", "entry")
			if server.Must("DBSIZE") != "1" {
				t.Error("the entry is not there")
			}
			for text, want := range map[string]string{
				"tls {\nclient_auth CERT KEY\n}": "certificate signed by unknown authority",
				"tls {\ntrust_pool file CA\nclient_auth CERT KEY\nserver_name other.internal\n}": "certificate is valid for redis.internal, not other.internal",
				"tls {\ntrust_pool file CA\n}": "", // it wants a certificate; how that shows depends on the version
				"":                             "", // not TLS at all
			} {
				if _, err := store(text).tryAcquire("doc", ""); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: got %v, want %s", text, err, want)
				}
			}
		})
	}
}
