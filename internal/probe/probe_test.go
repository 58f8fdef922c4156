package probe

import (
	"crypto/x509"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestAdviceOnTheNetwork(t *testing.T) {
	for want, err := range map[string]error{
		"DNS":                  &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "api.example.com"}},
		"HTTPS_PROXY":          &net.OpError{Op: "proxyconnect", Net: "tcp", Err: syscall.ECONNREFUSED},
		"this machine's clock": x509.CertificateInvalidError{Reason: x509.Expired},
		"tls_trust_pool":       x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign},
		"another name":         x509.HostnameError{Certificate: new(x509.Certificate), Host: "api.example.com"},
		"Nothing accepts":      &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"firewall":             &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)},
	} {
		if got := adviceOn(err); !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}
