# What Perl apps see of the token's header and cookie.
use strict;
use warnings;
use CGI::Cookie;
use CGI::Simple::Cookie;
use JSON::PP;
use MIME::Base64;
use Mojo::Cookie::Request;
use Plack::Request;

sub {
    my $env = shift;
    my @header = exists $env->{HTTP_X_VIEWER_SESSION} ? ($env->{HTTP_X_VIEWER_SESSION}) : ();
    my $line = $env->{HTTP_COOKIE} // '';
    my @cookie;
    my $plack = Plack::Request->new($env)->cookies->{vs};
    push @cookie, $plack if defined $plack;
    for my $class ('CGI::Cookie', 'CGI::Simple::Cookie') {
        my %cookies = eval { $class->parse($line) };
        push @cookie, join('&', $cookies{vs}->value) if $cookies{vs};
    }
    for my $cookie (@{ Mojo::Cookie::Request->parse($line) }) {
        push @cookie, $cookie->value // '' if $cookie->name eq 'vs';
    }
    my $encode = sub { my $value = shift; utf8::encode($value) if utf8::is_utf8($value); encode_base64($value, '') };
    my $body = encode_json({ header => [map { $encode->($_) } @header], cookie => [map { $encode->($_) } @cookie] });
    return [200, ['Content-Type' => 'application/json', 'Content-Length' => length $body], [$body]];
};
