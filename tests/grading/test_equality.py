# SPDX-License-Identifier: Apache-2.0
"""Which answers are the same: pairs of our own, by kind, and the fences around each leniency."""

from __future__ import annotations

from collections import defaultdict

import pytest

from satori_fast.grading import equivalent
from satori_fast.grading.algebra import UnreadableError
from satori_fast.grading.equality import check_readable, same_answer
from satori_fast.grading.spelling import clean

# kind | gold answer | answer
SAME = r"""
tiny | \frac{1}{2^{99}} | 2^{-99}
tiny | \frac{1}{20!} | \frac{1}{2432902008176640000}
tiny | 10^{-12} | 0.000000000001
tiny | 1-\frac{1}{3^{30}} | \frac{3^{30}-1}{3^{30}}
big | 2^{64}-1 | 18446744073709551615
big | 20! | 2432902008176640000
big | 7^{50} | 1798465042647412146620280340569649349251249
frac | \frac{-3}{4} | -\frac{3}{4}
frac | \frac{3}{-4} | -0.75
frac | -3/4 | \frac{-3}{4}
frac | \frac{22}{7} | 22/7
frac | \frac12 | .5
frac | \frac{7}{2} | 3.5
mixed | \frac{7}{2} | 3\frac12
mixed | 3\frac{1}{2} | \frac{7}{2}
mixed | 2 3/4 | 2.75
mixed | 17 \frac{1}{2} | 17.5
mixed | -1\frac{1}{2} | -1.5
repeat | 0.\overline{27} | \frac{3}{11}
repeat | \frac{5}{6} | 0.8\overline{3}
repeat | 0.\bar{6} | 2/3
repeat | 0.(3) | \frac13
repeat | 1.\overline{6} | \frac{5}{3}
repeat | \frac{1}{9} | 0.\dot{1}
thousands | 10,000 | 10000
thousands | 10000 | 10\,000
thousands | 1,000,000 | 1{,}000{,}000
thousands | 1\,000\,000 | 1000000
thousands | 2,\!500 | 2500
thousands | 1234567 | 1.234.567
thousands | -12,345 | -12345
thousands | 12,345.67 | 12345.67
decimal comma | 0.5 | 0,5
decimal comma | 3,14 | 3.14
decimal comma | -2.75 | -2,75
units | 3m | 3m
units | 3m | 3\text{ m}
units | 7 | 7\text{ cm}
units | 7\text{ cm} | 7
units | 7\text{ cm}^2 | 7\,\text{cm}^2
units | 7\text{ cm}^2 | 7\text{ square centimeters}
units | 5\text{ km} | 5000\text{ m}
units | 24\text{ inches} | 2\text{ feet}
units | 90\text{ minutes} | 1.5\text{ hours}
units | 60\text{ mph} | 60\text{ miles per hour}
units | 5\text{ m/s} | 5\ \frac{\text{m}}{\text{s}}
units | 12 | 12 apples
units | 12\text{ students} | 12
units | 15\mathrm{~kg} | 15
units | 15\mathrm{~kg} | 15\text{ kilograms}
units | 10\pi\text{ cm}^2 | 10\pi
units | 10\pi | 10\pi\text{ square units}
units | \frac{5}{2}\text{ hours} | 2.5
units | 3 | 3s
units | 20 | 20 kg
units | 3 hours | 3
units | 30 | 30\text{ (cm)}
units | 2\sqrt{3}\text{ cm} | 2\sqrt{3}
degrees | 45 | 45^{\circ}
degrees | 45^\circ | 45\text{ degrees}
degrees | 45^\circ | \frac{\pi}{4}
degrees | 180^\circ | \pi
degrees | 30 | 30 degrees
degrees | \frac{\pi}{2} | 90^\circ
degrees | 100^\circ\text{C} | 100
degrees | \sin 30^\circ | \frac{1}{2}
degrees | \cos 60^\circ | 0.5
degrees | \frac{1}{2} | \sin(30^\circ)
scale | 2\text{ thousand} | 2000
scale | 3000000 | 3 million
scale | 2.5\text{ billion} | 2,500,000,000
scale | 24 | 2\text{ dozen}
scale | 400 | 4 hundred
scale | \$2\text{ million} | 2000000
scale | 5\text{ million} | 5,000,000\text{ dollars}
percent | 25\% | 25
percent | 25\% | 0.25
percent | 25\% | \frac{1}{4}
percent | 0.25 | 25\%
percent | \frac14 | 25\%
percent | 25 | 25 percent
percent | 25\% | 25\text{ percent}
percent | 12.5\% | 12.5%
percent | 33\frac{1}{3}\% | 33\frac13
money | \$18 | 18
money | 18 | \$18.00
money | \$1,200 | 1200
money | 1200 | \$1{,}200
money | \$0.50 | 50\text{ cents}
money | 3.5 | \$3.50
money | 15\text{ dollars} | \$15
money | 15 | 15\text{ dollars}
set | \{1,2,3\} | \{3,2,1\}
set | \{1,2,3\} | 1,2,3
set | 1, 2 | 2, 1
set | \{3\} | 3
set | \{-2\} | -2
set | 2,-2 | \pm 2
set | \{\frac12, 3\} | \{3, 0.5\}
set | \{1,1,2\} | \{1,2\}
tuple | (1,-2) | (1, -2)
tuple | (\frac12, 3) | (0.5,3)
tuple | (1,2,3) | \left(1,2,3\right)
tuple | (3,4),(5,6) | (5,6),(3,4)
tuple | (a,b) | (a, b)
interval | [0,1) | [0, 1)
interval | (0,\infty) | x>0
interval | x>0 | (0,\infty)
interval | x \le 5 | (-\infty, 5]
interval | 1<x<3 | (1,3)
interval | (1,3) | 1<x<3
interval | [1,3] | 1\le x\le 3
interval | (-\infty,0)\cup(1,\infty) | x<0 \text{ or } x>1
interval | (-\infty,0)\cup(1,\infty) | (1,\infty)\cup(-\infty,0)
interval | x\neq 3 | (-\infty,3)\cup(3,\infty)
interval | (-\infty,3)\cup(3,\infty) | \mathbb{R}\setminus\{3\}
interval | x \in [2,5] | [2,5]
interval | [2,5] | x \in [2,5]
interval | \{x \mid 2 \le x \le 5\} | [2,5]
interval | \{x : x > 2\} | x > 2
interval | [\sqrt{8}, 4] | [2\sqrt2, 4]
interval | (2,\infty) | \{x | x > 2\}
interval | a \geq 2 | [2, \infty)
interval | x > 3 | 3 < x
interval | -1 \le x < 4 | 4 > x \ge -1
interval | [0,1]\cup[1,2] | [0,2]
interval | (-\infty, \infty) | \mathbb{R}
interval | \mathbb{R} | x \in \mathbb{R}
interval | (-\infty,\infty) | all real numbers
empty | \varnothing | \emptyset
empty | \emptyset | \{\}
empty | \text{no solution} | \emptyset
empty | \emptyset | \text{No solutions}
eq | y = 3x - 2 | y=-2+3x
eq | y=3x-2 | 3x - y - 2 = 0
eq | y=3x-2 | 3x-2
eq | 3x-2 | y=3x-2
eq | x^2+y^2=4 | 2x^2+2y^2=8
eq | x+y=5 | y=5-x
eq | f(x)=2x | 2x
eq | f(x)=2x | f(x) = x+x
eq | x=5 | 5
eq | 5 | x=5
eq | 5 | x = \frac{10}{2} = 5
eq | 5 | \frac{10}{2} = 5
eq | 5 | n = 5
eq | (1,2) | (x,y) = (1,2)
eq | f^{-1}(x) = 2x | 2x
eq | 9\pi | A = \pi r^2 = 9\pi
eq | A = 3^2\pi = 9\pi | 9\pi
eq | 7 | m+n=7
eq | 5 | AB = 5
eq | 60 | \angle ABC = 60^\circ
eq | x=1, x=2 | 1, 2
eq | 1,2 | x=1 \text{ or } x=2
eq | x=1,y=2 | y=2, x=1
eq | x = 2, y = 3 | x=2 \text{ and } y=3
eq | x=\pm 2 | x=2, x=-2
eq | \pm\sqrt{2} | -\sqrt{2}, \sqrt{2}
eq | 1\pm\sqrt{2} | 1+\sqrt2, 1-\sqrt2
eq | \frac{1 \pm \sqrt{5}}{2} | \frac{1+\sqrt5}{2}, \frac{1-\sqrt5}{2}
approx | 3.14 | \approx 3.14
approx | 3.14 | x \approx 3.14
approx | \sqrt{2} | \sqrt{2} \approx 1.414
approx | 12 | \text{approximately }12
approx | 12 | about 12
choice | B | (B)
choice | B | \text{(B)}
choice | B | \textbf{(B) }12
choice | B | B) 12
choice | B | B: 12
choice | B | (B) 12
choice | (B) | B
choice | \text{(B)} | B
choice | 12 | (B) 12
choice | 12 | \textbf{(B)}\ 12
choice | C | \text{C. } x^2
choice | C | The answer is C
choice | C | Option C
choice | C | \text{Option C}
text | \text{Monday} | Monday
text | Monday | \text{monday}
text | \text{True} | true
text | Yes | \text{Yes.}
text | \text{no} | No
text | parallelogram | \text{Parallelogram}
text | \text{Sunday} | The answer is Sunday
text | \text{neither} | neither
time | 10:30 | 10{:}30
time | 3:45 \text{ PM} | 3:45 PM
time | 3:45\text{ p.m.} | 3:45\text{ PM}
time | 03:45 | 3:45
ratio | 2:3 | 4:6
ratio | 2:3 | 2 : 3
ratio | 3:4:5 | 6:8:10
ratio | 1:3 | \frac{1}{3}
algebra | x^2-1 | (x-1)(x+1)
algebra | \frac{x^2-1}{x-1} | x+1
algebra | 2(x+3) | 2x+6
algebra | ab+ac | a(b+c)
algebra | 3xy | 3yx
algebra | \frac{a}{b} | a/b
algebra | 2k\pi | 2\pi k
algebra | n(n+1)/2 | \frac{n^2+n}{2}
algebra | e^{2x} | (e^x)^2
algebra | x^{10} | x^10
algebra | 6x^5 | 6x**5
algebra | \frac{3}{2}x | 1.5x
surd | 3\sqrt{2} | \sqrt{18}
surd | \frac{\sqrt{2}}{2} | \frac{1}{\sqrt2}
surd | \sqrt[3]{8} | 2
surd | \sqrt[3]{16} | 2\sqrt[3]{2}
surd | 3\sqrt{2} | 3*sqrt(2)
surd | \sqrt{3+2\sqrt{2}} | 1+\sqrt{2}
surd | 6 | 2(3)
surd | 10 | (2)(5)
trig | \cos^2 x | 1-\sin^2 x
trig | \sin 2x | 2\sin x\cos x
trig | \arctan 1 | \frac{\pi}{4}
log | \log_3 9 | 2
log | \ln e^2 | 2
log | \log_{10} 100 | 2
log | \log 1000 | 3
log | \ln 8 | 3\ln 2
binom | \binom{5}{2} | 10
binom | \binom52 | 10
binom | 20 | {}_5P_2
binom | 10 | {}_5C_2
binom | \frac{10!}{5!5!} | 252
complex | 2+3i | 3i+2
complex | (1+i)^2 | 2i
complex | -1 | i^2
base | 101_2 | 101_{2}
base | 101_2 | 101_{\text{2}}
power | 2^{10} | 1024
power | 4^x | 2^{2x}
power | \frac{1}{x^2} | x^{-2}
matrix | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
matrix | \begin{pmatrix}\frac12\\2\end{pmatrix} | \begin{pmatrix}0.5\\2\end{pmatrix}
matrix | \left[\begin{array}{cc}1&2\\3&4\end{array}\right] | \begin{pmatrix}1&2\\3&4\end{pmatrix}
vector | (1,2,3) | \begin{pmatrix}1\\2\\3\end{pmatrix}
vector | \langle 3, -4\rangle | (3,-4)
vector | \mathbf{i}+2\mathbf{k} | 2\mathbf{k}+\mathbf{i}
markup | 5 | {5}
markup | 5 | \mathrm{5}
markup | 5 | \text{5}
markup | 5 | $5$
markup | 5 | \(5\)
markup | 5 | \bf 5
markup | 5 | \color{red}{5}
markup | 5 | \textcolor{blue}{5}
markup | 5 | \boxed{5}
markup | 5 | 5\,
markup | 5 | ``5``
markup | 5 | 5.
markup | 5 | `5`
markup | \frac12 | \displaystyle\frac{1}{2}
markup | \frac12 | \left(\frac{1}{2}\right)
markup | 5 | \text{Answer: }5
markup | 5 | Answer: 5
markup | 5 | \text{Thus, the answer is } 5
markup | 5 | +5
markup | 05 | 5
markup | e^2 | \mathrm{e}^2
markup | e^2 | \mathrm{e}^{2}
escape | \frac{1}{2} | \\frac{1}{2}
escape | \\sqrt{2} | \sqrt{2}
escape | \pi | \\pi
"""
DIFFERENT = r"""
tiny | \frac{1}{2^{99}} | \frac{1}{2^{98}}
tiny | 10^{-9} | 0
tiny | 10^{-9} | 10^{-10}
tiny | \frac{1}{7!^3} | \frac{1}{8!^3}
tiny | e^{-30} | e^{-31}
tiny | 1-\frac{1}{2^{60}} | 1
big | 3^{80} | 3^{80}+1
big | 20! | 20!+1
big | 10^{20} | 10^{20}-1
big | 10^{50}x | (10^{50}+1)x
near | \frac{2}{3} | 0.67
near | \frac{2}{3} | 0.6667
near | \sqrt{3} | 1.732
near | e | 2.718
near | 0.33 | \frac{1}{3}
near | \pi | 3.14159265
near | 1 | 0.9999999
frac | \frac{3}{4} | \frac{4}{3}
frac | \frac{3}{4} | 34
mixed | \frac{3}{2} | 1\frac{1}{3}
mixed | 2\frac{1}{2} | 1
mixed | 3 | 1 2
mixed | 42 | 12 30
mixed | 30 | 5 10 15
mixed | 5 | 1 1 1 1 1
mixed | 5 | 2\ 3
mixed | 5 | 2\quad 3
mixed | 6 | 2 3
mixed | 5 | 2(3)
mixed | 5 | (2)(3)
mixed | 3 | 1\;2
mixed | -\frac{3}{2} | -1+\frac{1}{2}
repeat | \frac{1}{3} | 0.33
repeat | 0.\overline{3} | 0.3
repeat | 0.\overline{3} | 0.33
repeat | \frac13 | 0.333\ldots1
thousands | 1234 | 1.234
thousands | 1,234 | 1.234
thousands | 1.234 | 1,234
thousands | 1234 | 1,2,3,4
thousands | 1234 | 12,34
thousands | 1,234 | [1,234]
thousands | 1,234 | \{1,234\}
thousands | 235 | 1,234
decimal comma | 2,5 | 25
decimal comma | 2.5 | 2,50,1
decimal comma | 35 | 3,5
decimal comma | 8 | 3,5
units | 3n | 3
units | 4g | 4
units | 4s | 4
units | 2x\,m | 2x
units | 2\pi r | 2\pi
units | 2\pi | 2\pi h
units | 2\pi r h | 2\pi r
units | 5a+2b | 5a+2
units | v=5t | 5
units | (2h,3h) | (2,3)
units | \frac{5m}{3} | \frac53
units | 3 | 3x
units | 3 | 3a
units | 3 | 3k
units | 3 | 3 xy
units | 5\text{ km} | 5\text{ m}
units | 5\text{ cm} | 5\text{ m}
units | 5\text{ kg} | 5\text{ g}
units | 5\text{ m}^2 | 5\text{ m}
units | 5\text{ hours} | 5\text{ minutes}
units | 2 feet | 2 inches
units | 2\text{ miles} | 2\text{ km}
units | 5\text{ m} | 5\text{ kg}
units | 5 | \text{not }5
units | 5 | 5\text{ or more}
units | 5 | \text{at least }5
units | 5 | 5\text{ more than }x
units | 5 | 5\text{ squared}
units | 5 | 5\text{ and }6
units | 5 | 5\text{ factorial}
units | 5 | 5\text{ below zero}
units | 5 | 5\text{ mod }7
units | 5 | 5\text{ apples, }3\text{ pears}
units | 8 | 5\text{ apples and }3\text{ pears}
degrees | \frac{\pi}{4} | 45
degrees | 45 | \frac{\pi}{4}
degrees | 45^\circ | 45\text{ radians}
degrees | 45^\circ | 46^\circ
degrees | 4 | 4^\circ 30'
degrees | 100^\circ\text{C} | 100^\circ\text{F}
degrees | \sin 30 | \frac{1}{2}
scale | 3 | 3\text{ thousand}
scale | 3\text{ thousand} | 3
scale | 3\text{ thousand} | 3\text{ million}
scale | 2 | 2\text{ dozen}
scale | 5 | 5\text{ hundred}
scale | 7 | 7 million
scale | 7 | \$7\text{ million}
scale | 3 | 3\text{ tenths}
scale | 3\text{ hundredths} | 3
scale | 1500 | 1.5\text{ million}
percent | 25\% | 2500
percent | 25\% | 26\%
percent | 0.25 | 25
percent | 25 | 0.25
percent | 0.25 | 0.25\%X
percent | 20\% | 0.02
money | \$5 | 6
money | \$5 | 5\text{ cents}
money | 50\text{ cents} | \$50
set | \{1,2\} | \{1,3\}
set | \{1,2\} | \{1,2,3\}
set | \{1,2,3\} | \{1,2\}
set | 3 | [3,3]
set | 3 | (3,3)
set | 3 | \{3,3,4\}
set | 3 | [3]
set | 3 | [1,5]
set | 3 | (2,4)
set | 3 | 3,3
set | 3 | 3, 4
set | 3 | 3; 4
set | 3 | \{2,3\}
set | 3 | 3 \text{ and } 4
set | 3 | 3 \lor 4
set | 3 | 2,3
set | 3 | 3 or 5
set | 3 | 3/4 or 3
set | 1,2 | 1,2,2
set | 1,1,2 | 1,2
set | 1,2,3 | 1,2,3,\ldots
set | \{1,2,3\} | \{1,2,3,\ldots\}
tuple | (1,2) | (2,1)
tuple | (1,2) | [1,2]
tuple | (1,2) | \{1,2\}
tuple | (1,2) | 2,1
tuple | (1,2) | (1,2,3)
tuple | (1,2) | 1
tuple | (1,2),(3,4) | (1,2)
tuple | (1,2),(3,4) | (1,3),(2,4)
tuple | \{1,2\} | (1,2)
interval | [0,1] | (0,1)
interval | [0,1) | (0,1]
interval | (0,1) | (0,2)
interval | x>1 | x\ge 1
interval | x>1 | x<1
interval | x>1 | [1,\infty)
interval | x>1 | y>1
interval | (1,\infty) | (1,2)
interval | x<1 \text{ or } x>2 | (1,2)
interval | x<1 \text{ or } x>2 | x<1
interval | (-\infty,1)\cup(2,\infty) | (-\infty,1)\cup[2,\infty)
interval | (-\infty,1)\cup(2,\infty) | (-\infty,1)
interval | \mathbb{R} | \mathbb{Z}
interval | \mathbb{R} | (0,\infty)
interval | (3,\infty) | 3
interval | 1<x<3 | 1<x<4
interval | \{x \mid x>3\} | \{x \mid x \ge 3\}
interval | \{x \mid x>3\} | \{x \mid x<3\}
empty | \emptyset | 0
empty | 0 | \emptyset
empty | \emptyset | \{1\}
eq | 3 | 2=3
eq | 3 | 2x = 3
eq | 3 | x^2=3
eq | 3 | x+1=3
eq | 3 | x=2=3
eq | 3 | 1+1=3
eq | 3 | x=3=4
eq | 3 | x \ge 3
eq | 3 | x \neq 3
eq | 3 | x < 3
eq | 3 | 3 < x < 4
eq | 3 | x=3,4
eq | 3 | x=3, y=4
eq | 3 | -x=3
eq | 3 | |x| = 3
eq | y=x+1 | 0=0
eq | y=x+1 | x=x
eq | y=x+1 | y=x
eq | y=x+1 | x+1=0
eq | y=x+1 | z=x+1
eq | y=x+1 | y=x+1+z
eq | x=2 | y=2
eq | x=2 | x=-2
eq | x=2 | x^2=4
eq | x=2 | 2x=2
eq | x=2,y=3 | 2,4
eq | x=2,y=3 | 3,2
eq | x=2,y=3 | y=2,x=3
eq | x^2+y^2=1 | x^2+y^2=2
eq | x^2+y^2=1 | x^2-y^2=1
eq | x+2y=3 | 0
eq | x+2y=3 | 3
eq | f(x)=2x | g(x)=3x
eq | k=2m | 2
eq | y_1 = x + 4 y_2 = 3x | y_1 = x + 5 y_2 = 3x
approx | 3 | \approx 4
approx | 3 | x \approx 4
approx | 3 | 3 \approx 4
pm | \pm 2 | 2
pm | 2 | \pm 2
pm | \pm 2 | 2, 2
pm | 1\pm\sqrt{2} | 1+\sqrt{2}
choice | A | C
choice | A | (B)
choice | A | A or B
choice | A | A, B
choice | A | (A)(B)
choice | A | A and B
choice | A | (A) \text{ or } (B)
choice | A | \text{(A) or (B)}
choice | A | A. B. C.
choice | A | b
choice | A | AB
choice | (A) 5 | (B) 5
choice | (A) 5 | (A) 6
choice | 5 | (A) 6
text | \text{even} | \text{odd}
text | \text{Yes} | No
text | \text{Tom} | \text{Tom is right}
text | \text{Tom} | \text{Not Tom}
text | \text{increasing} | \text{decreasing}
text | listen | silent
text | \text{red} | \text{red or blue}
case | AB | BA
case | PQ | pq
case | ABC | abc
case | a+b | A+B
case | n | N
case | X | x
case | x_1 | x_2
case | x_1 | x
time | 10:30 | 10.30
time | 10:30 | 1030
time | 10:30 | 10:31
time | 10:30\text{ AM} | 10:30\text{ PM}
time | 10:30\text{ AM} | 10:30
time | 10:30 | 10:30 AM
time | 3:45 | 1:15
ratio | 2:3 | 3:2
ratio | 2:3 | 2:4
ratio | 1:2 | 1
ratio | 1:2 | 12
ratio | 1:2 | 1:2:3
ratio | 1:2 | 1.2
algebra | x^2+1 | x^2+2
algebra | (x+1)^2 | x^2+1
algebra | 2x | x^2
algebra | x+y | x-y
algebra | \sqrt{x^2} | x
algebra | |x| | x
algebra | x | 0
algebra | 0 | x
algebra | 2x+1 | 2y+1
algebra | \frac{x}{y} | \frac{y}{x}
algebra | x_1+x_2 | x_2+x_3
algebra | x^2 | x2
surd | 2\sqrt{3} | 3\sqrt{2}
surd | 2\sqrt{3} | \sqrt{6}
surd | \sqrt{2} | 2
surd | \sqrt{2} | -\sqrt{2}
trig | \sin x | \cos x
trig | \sin 2x | 2\sin x
log | \ln 3 | \log 3
log | \log_2 3 | \log_3 2
log | \ln x | \log_2 x
binom | \binom{5}{2} | \binom{5}{1}
binom | \binom{5}{2} | \frac{5}{2}
complex | 1+i | 1-i
complex | i | 1
complex | i | -i
base | 101_2 | 101
base | 101_2 | 101_3
base | 101_2 | 5
base | 12_5 | 12
power | -2^2 | 4
power | 2^{3^2} | 64
power | x^{-1} | -x
power | 2^{10} | 20
power | 2^{10} | 210
matrix | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&2\\3&5\end{pmatrix}
matrix | \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1&2\end{pmatrix}
matrix | \begin{pmatrix}1&0\\0&1\end{pmatrix} | 1
vector | (1,2) | \begin{pmatrix}2\\1\end{pmatrix}
vector | 2\mathbf{i}+3\mathbf{j} | 3\mathbf{i}+2\mathbf{j}
vector | \langle 1,2\rangle | \langle 2,1\rangle
unicode | \sqrt{3} | 3
unicode | -5 | 5
markup | 5 | 5+1
markup | 5 | 5\cdot 2
markup | 5 | \text{The answer is }6
markup | 5 | **6**
markup | 5 | 5 6
markup | 5 | \sqrt{5}
markup | 5 | 5!
markup | 5 | 5^2
markup | 5 | \lfloor 5.5 \rfloor + 1
markup | 5 | |{-5}|+1
hack | 3 | 0<3
hack | 3 | 3\mid 6
hack | 3 | 3 \to 4
hack | 3 | \text{3 or 4}
hack | 3 | \text{3, 4}
hack | 3 | 3 4
hack | 3 | 3'
hack | 3 | 3\text{ }4
hack | 3 | x
hack | 3 | \text{x}
hack | 3 | 3\cup 4
hack | 3 | 3\text{,}4
hack | 3 | 3\ldots
hack | 3 | \{x|x=3\}\cup\{4\}
hack | x=3 | x
hack | 12 | 1\,2
hack | 12 | 1 2
hack | 123 | 1 2 3
hack | 5 | 5.\overline{1}
hack | \text{yes} | \text{yes or no}
hack | 5 | \frac{5}{1}\frac{2}{1}
hack | \infty | 5
hack | 5 | \infty
hack | 0 | -\infty+\infty
hack | 1 | \infty/\infty
hack | \frac{1}{0} | \frac{2}{0}
"""
SAME_UNICODE = [  # (gold answer, answer)
    (r"45\degree", "45\u00b0"),
    (r"100^\circ\text{C}", "100\u00b0C"),
    (r"2\sqrt{5}", "2\u221a5"),
    ("x^2+1", "x\u00b2+1"),
    (r"\pi", "\u03c0"),
    (r"3\pi", "3\u03c0"),
    (r"\frac{3}{4}", "\u00be"),
    (r"\frac32", "1\u00bd"),
    (r"[0,\infty)", "[0,\u221e)"),
    ("-3", "\uff0d\uff13"),
    ("25", "\uff12\uff15"),
    (r"x\le 3", "x \u2264 3"),
    (r"x\ne 3", "x \u2260 3"),
    ("6", "2\u00b73"),
    ("2", "6\u00f73"),
    (r"\pm 3", "\u00b13"),
    (r"\alpha+\beta", "\u03b1+\u03b2"),
    (r"\{1,2\}", "\uff5b1\uff0c2\uff5d"),
    ("5", "5\u3002"),
    ("x^{10}", "x\u00b9\u2070"),
    (r"-\frac12", "\u2212\u00bd"),
]
DIFFERENT_UNICODE = [
    (r"\$5", "\u20ac5"),
    ("x^2", "x\u00b3"),
    (r"\frac12", "\u2153"),
    ("60", "6\u00b0"),
]


def by_kind(table: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(kind, its pairs) in order."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in table.strip().split("\n"):
        kind, gold, answer = line.split(" | ", 2)
        kinds[kind].append((gold, answer))
    return list(kinds.items())


@pytest.mark.parametrize(("kind", "pairs"), by_kind(SAME))
def test_same_answers(kind: str, pairs: list[tuple[str, str]]) -> None:
    assert [(gold, answer) for gold, answer in pairs if not equivalent(answer, gold)] == [], kind


@pytest.mark.parametrize(("kind", "pairs"), by_kind(DIFFERENT))
def test_different_answers(kind: str, pairs: list[tuple[str, str]]) -> None:
    assert [(gold, answer) for gold, answer in pairs if equivalent(answer, gold)] == [], kind


def test_unicode() -> None:
    assert [pair for pair in SAME_UNICODE if not equivalent(pair[1], pair[0])] == []
    assert [pair for pair in DIFFERENT_UNICODE if equivalent(pair[1], pair[0])] == []


def test_every_gold_answer_of_the_tables_can_be_read_and_is_itself() -> None:
    golds = {gold for _, pairs in by_kind(SAME) for gold, _ in pairs}
    for gold in golds:
        check_readable(clean(gold))
        assert same_answer(clean(gold), clean(gold)), gold


@pytest.mark.parametrize("gold", [r"\frac{1}{", "1 2", "x = = 2", r"\frac{1}{0}", "a, b, ??"])
def test_what_cannot_be_read(gold: str) -> None:
    with pytest.raises(UnreadableError):
        check_readable(clean(gold))


def test_a_list_of_numbers_is_not_their_sum() -> None:
    for count in range(2, 7):
        for separator in (" ", ", ", r"\ ", r"\quad ", r"\;", "; ", r"\text{ }", r" \text{and} "):
            assert not equivalent(separator.join(["1"] * count), str(count)), separator


def test_long_lists_are_compared_by_their_text() -> None:
    numbers = [str(n) for n in range(100)]
    assert equivalent(", ".join(numbers), ",".join(numbers))
    assert equivalent(", ".join(reversed(numbers)), ",".join(numbers))
    assert not equivalent(", ".join([*numbers[:-1], "100"]), ",".join(numbers))
