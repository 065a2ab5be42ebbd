"""Topics of the sample text: where things are made, grown, caught and taught. `lexicon.py` explains the notation."""

BAKERY = """
title: Ein Tag in der Backstube / Vom Mehl zum Brot / Die Bäckerei an der Ecke
W der Bäcker -s Bäcker: fleißig erfahren müde
W die Bäckerin - Bäckerinnen: fleißig jung freundlich
W der Lehrling -s Lehrlinge: jung neugierig
W die Verkäuferin - Verkäuferinnen: freundlich geduldig
G der Kunde -n Kunden: hungrig treu
G die Kundin - Kundinnen: höflich treu
T das Brot -es Brote: frisch dunkel knusprig warm
T der Kuchen -s Kuchen: süß frisch rund
T das Brötchen -s Brötchen: hell knusprig warm
T die Torte - Torten: süß hoch bunt
T die Brezel - Brezeln: frisch knusprig salzig
T das Blech -es Bleche: heiß flach schwer
T der Ofen -s Öfen: heiß alt groß
T der Korb -es Körbe: leer voll groß
T die Tüte - Tüten: klein braun leer
M das Mehl -s -: fein weiß
M der Teig -s -: weich zäh
M die Hefe - -: frisch
M der Zucker -s -: fein weiß
M die Butter - -: weich kalt
in die Backstube - Backstuben: warm eng hell
in die Bäckerei - Bäckereien: klein alt beliebt
in der Laden -s Läden: klein hell voll
X die Kruste - Krusten: braun hart knusprig < Brot Brötchen
X der Rand -es Ränder: hart dunkel < Kuchen Blech
W backen acc:Brot,Kuchen,Brötchen,Torte,Brezel m
W kneten acc:Teig m:kräftig,lange,langsam
W mischen acc:Mehl mit+dat:Zucker,Hefe,Butter m
W legen acc:Brot,Brötchen,Brezel in+acc:Korb m
W legen acc:Brezel,Brötchen auf+acc:Blech m
W schieben acc:Blech,Kuchen in+acc:Ofen m:vorsichtig,schnell
W heizen acc:Ofen
W verkaufen dat:G acc:Brot,Kuchen,Brötchen,Torte,Brezel
W ein|packen acc:Brot,Kuchen,Torte,Brezel m
W verzieren acc:Torte,Kuchen m
W begrüßen acc:G m:freundlich,herzlich
G kaufen acc:Brot,Kuchen,Brötchen,Brezel
G bestellen acc:Torte,Kuchen,Brot
G bezahlen acc:Brot,Kuchen,Brezel
G essen acc:Kuchen,Brezel,Brötchen m:langsam,gern
G sich+freuen auf+acc:Kuchen,Torte,Brezel
Brot,Kuchen,Brötchen,Brezel duften m:gut,herrlich
"""

GARDEN = """
title: Im Garten / Frühling im Garten / Was im Garten zu tun ist
W der Gärtner -s Gärtner: fleißig erfahren ruhig
W die Gärtnerin - Gärtnerinnen: fleißig geduldig jung
W der Gehilfe -n Gehilfen: jung stark
G der Nachbar -n Nachbarn: neugierig alt
G die Nachbarin - Nachbarinnen: freundlich alt
G die Großmutter - Großmütter: alt lieb
T die Blume - Blumen: bunt schön zart
T die Rose - Rosen: rot schön weiß
T der Baum -es Bäume: hoch alt kräftig
T der Strauch -es Sträucher: dicht klein grün
T das Beet -es Beete: lang breit schmal
T die Hecke - Hecken: hoch dicht grün
T der Apfel -s Äpfel: rot reif süß
T die Tomate - Tomaten: rot reif rund
T die Gurke - Gurken: lang grün
T der Zaun -es Zäune: alt niedrig morsch
T die Gießkanne - Gießkannen: voll leer schwer
T der Spaten -s Spaten: schwer alt scharf
M die Erde - -: feucht locker schwarz
M das Unkraut -s -: dicht zäh
M der Rasen -s -: grün feucht
in der Garten -s Gärten: groß alt wild
in das Gewächshaus -es Gewächshäuser: warm neu feucht
auf die Wiese - Wiesen: grün groß feucht
an der Teich -es Teiche: klein tief still
X die Blüte - Blüten: zart weiß groß < Rose Blume Strauch
X der Ast -es Äste: dick morsch lang < Baum Strauch
W gießen acc:Blume,Rose,Beet,Tomate m
W pflanzen acc:Baum,Rose,Strauch,Blume m
W schneiden acc:Hecke,Strauch,Rose,Rasen m
W ernten acc:Apfel,Tomate,Gurke
W entfernen acc:Unkraut m
W um|graben acc:Beet m:langsam,allein
W holen acc:Spaten,Gießkanne
W reparieren acc:Zaun m
W mähen acc:Rasen m:schnell,allein
W schenken dat:G acc:Rose,Apfel,Blume
G pflücken acc:Apfel,Blume,Tomate m:vorsichtig,gern
G bewundern acc:Rose,Blume,Baum,Beet
G helfen dat:W m:gern
G sich+erholen
Blume,Rose,Strauch,Baum blühen m:prächtig,lange
Apfel,Tomate,Gurke reifen m:langsam,schnell
Baum,Hecke,Strauch wachsen m:langsam,schnell
"""

HARBOUR = """
title: Am Hafen / Die Fischer und ihre Boote / Früh am Kai
W der Fischer -s Fischer: alt müde erfahren
W der Kapitän -s Kapitäne: streng erfahren berühmt
W der Matrose -n Matrosen: jung stark
W die Seglerin - Seglerinnen: mutig jung
G der Urlauber -s Urlauber: neugierig fröhlich
G die Urlauberin - Urlauberinnen: neugierig fröhlich
G der Händler -s Händler: schlau reich
T das Boot -es Boote: klein alt schnell
T das Schiff -es Schiffe: groß weiß alt
T das Netz -es Netze: leer voll schwer
T der Fisch -es Fische: frisch groß silbern
T der Anker -s Anker: schwer rostig
T das Segel -s Segel: weiß groß nass
T die Kiste - Kisten: schwer leer voll
T das Tau -s Taue: lang dick nass
T die Ladung - Ladungen: schwer wertvoll
T der Motor -s Motoren: laut stark alt
in der Hafen -s Häfen: alt klein ruhig
an der Kai -s Kais: lang breit nass
auf die Mole - Molen: lang schmal nass
an das Ufer -s Ufer: steil flach grün
X der Mast -es Masten: hoch morsch < Schiff Boot
X das Deck -s Decks: nass breit < Schiff
W fangen acc:Fisch
W flicken acc:Netz,Segel m
W aus|werfen acc:Netz,Anker m
W lichten acc:Anker
W aus|laden acc:Kiste,Ladung m
W setzen acc:Segel
W verkaufen dat:G acc:Fisch,Boot
W reparieren acc:Boot,Segel,Motor,Netz m
W steuern acc:Schiff,Boot in+acc:Hafen m
W tragen acc:Kiste,Tau,Netz an+acc:Ufer m
W an|werfen acc:Motor
W putzen acc:Deck,Boot m
G beobachten acc:Schiff,Boot,Fischer m:lange,gern
G kaufen acc:Fisch
G fotografieren acc:Schiff,Boot,Segel,Kapitän
G warten auf+acc:Schiff,Boot,Fischer m:geduldig,lange
Schiff,Boot aus|laufen
Schiff,Boot an|legen
"""

WORKSHOP = """
title: In der Tischlerei / Holz und Hände / Ein neuer Tisch
W der Tischler -s Tischler: geschickt erfahren ruhig
W die Tischlerin - Tischlerinnen: geschickt jung stark
W der Meister -s Meister: streng alt erfahren
W der Geselle -n Gesellen: jung fleißig
G der Auftraggeber -s Auftraggeber: reich ungeduldig
G die Auftraggeberin - Auftraggeberinnen: freundlich reich
T der Tisch -es Tische: rund schwer groß
T der Stuhl -es Stühle: bequem alt leicht
T der Schrank -es Schränke: hoch schwer breit
T das Brett -es Bretter: lang glatt schmal
T der Hammer -s Hämmer: schwer klein
T der Nagel -s Nägel: lang spitz rostig
T die Säge - Sägen: scharf alt
T die Schraube - Schrauben: klein lang
T die Truhe - Truhen: alt schwer schön
M das Holz -es -: trocken hart dunkel
M der Leim -s -: zäh frisch
M der Lack -s -: klar dunkel
in die Werkstatt - Werkstätten: hell groß staubig
in die Tischlerei - Tischlereien: klein bekannt
an die Werkbank - Werkbänke: lang schwer
in das Lager -s Lager: trocken groß dunkel
X die Schublade - Schubladen: tief schmal leer < Tisch Schrank
X die Lehne - Lehnen: hoch gerade < Stuhl
W sägen acc:Brett,Holz m
W hobeln acc:Brett m
W bauen acc:Tisch,Schrank,Stuhl,Truhe m
W schleifen acc:Brett,Tisch,Lehne m
W streichen acc:Schrank,Stuhl,Truhe m
W liefern dat:G acc:Tisch,Schrank,Truhe
W befestigen acc:Brett,Lehne mit+dat:Schraube,Nagel m
W schlagen acc:Nagel in+acc:Brett,Holz m:kräftig,vorsichtig
W reparieren acc:Stuhl,Truhe,Schublade m
W messen acc:Brett,Tisch,Schrank m:genau,zweimal
W holen acc:Säge,Hammer,Leim,Holz
W suchen acc:Hammer,Schraube,Nagel
G bestellen acc:Tisch,Schrank,Truhe
G ab|holen acc:Stuhl,Tisch,Truhe
G bezahlen acc:Tisch,Schrank
G sich+freuen über+acc:Tisch,Truhe,Schrank m:sehr
Leim,Lack trocknen m:langsam,schnell
"""

FARM = """
title: Auf dem Bauernhof / Arbeit auf dem Land / Die Tiere im Stall
W der Bauer -n Bauern: fleißig alt müde
W die Bäuerin - Bäuerinnen: fleißig stark freundlich
W der Landwirt -s Landwirte: jung klug
W die Magd - Mägde: jung fröhlich
G das Kind -es Kinder: klein neugierig fröhlich
G der Tierarzt -es Tierärzte: ruhig erfahren
G die Tierärztin - Tierärztinnen: ruhig jung
T die Kuh - Kühe: braun ruhig gesund
T das Pferd -es Pferde: schnell schwarz stark
T das Schaf -es Schafe: weiß ruhig jung
T die Ziege - Ziegen: frech jung braun
T das Huhn -es Hühner: weiß braun
T der Hund -es Hunde: treu alt wachsam
T der Wagen -s Wagen: schwer voll leer
T der Traktor -s Traktoren: laut neu alt
B das Feld -es Felder: groß eben trocken
B der Acker -s Äcker: groß nass steinig
T das Ei -s Eier: frisch braun weiß
M das Heu -s -: trocken frisch
M die Milch - -: frisch warm
M das Stroh -s -: trocken sauber
M das Getreide -s -: reif golden
M das Futter -s -: frisch trocken
auf der Bauernhof -es Bauernhöfe: groß alt abgelegen
in der Stall -es Ställe: warm dunkel sauber
in die Scheune - Scheunen: hoch trocken dunkel
auf die Weide - Weiden: grün groß saftig
X das Dach -es Dächer: rot schief < Scheune Stall
X das Tor -es Tore: breit schwer < Scheune Stall Bauernhof
W melken acc:Kuh,Ziege
W füttern acc:Kuh,Pferd,Schaf,Huhn m
W pflügen acc:Feld,Acker m
W ernten acc:Getreide
W scheren acc:Schaf m
W bringen acc:Heu,Stroh,Getreide in+acc:Scheune
W treiben acc:Kuh,Schaf,Ziege auf+acc:Weide m
W reparieren acc:Traktor,Wagen,Dach,Tor m
W sammeln acc:Ei
W verkaufen acc:Ei,Milch,Getreide
W ein|spannen acc:Pferd
W holen acc:Futter,Heu,Stroh
G streicheln acc:Pferd,Hund,Ziege,Schaf m:vorsichtig,gern
G untersuchen acc:Kuh,Pferd,Schaf m
G rufen acc:Hund,Ziege
G trinken acc:Milch m:gern,schnell
Kuh,Schaf,Pferd,Ziege grasen m:ruhig
Hund bewachen acc:Bauernhof,Stall,Schaf
Pferd ziehen acc:Wagen m:langsam
Hund bellen m:laut,lange
"""

KITCHEN = """
title: Im Gasthaus / Ein Abend im Gasthaus / Aus der Küche
W der Koch -s Köche: berühmt laut erfahren
W die Köchin - Köchinnen: berühmt jung streng
W der Kellner -s Kellner: höflich schnell müde
W die Kellnerin - Kellnerinnen: höflich freundlich flink
G der Gast -es Gäste: hungrig zufrieden ungeduldig
G die Besucherin - Besucherinnen: höflich zufrieden
T die Suppe - Suppen: heiß scharf dünn
T der Salat -s Salate: frisch bunt grün
T der Teller -s Teller: leer sauber weiß
T der Topf -es Töpfe: groß heiß schwer
T die Pfanne - Pfannen: heiß schwer alt
T das Messer -s Messer: scharf lang
T das Glas -es Gläser: voll leer sauber
T die Rechnung - Rechnungen: hoch falsch
T der Braten -s Braten: zart saftig
T die Speisekarte - Speisekarten: lang neu
M das Fleisch -es -: zart frisch
M das Gemüse -s -: frisch bunt
M der Wein -s -: rot trocken kühl
M das Salz -es -: fein grob
M die Soße - -: scharf dick
in das Gasthaus -es Gasthäuser: gemütlich alt beliebt
in die Küche - Küchen: heiß groß sauber
auf die Terrasse - Terrassen: sonnig ruhig klein
in der Saal -s Säle: festlich groß voll
X der Deckel -s Deckel: schwer heiß < Topf Pfanne
X der Griff -s Griffe: lang heiß < Pfanne Messer
W kochen acc:Suppe,Gemüse,Soße m
W schneiden acc:Gemüse,Fleisch,Salat m
W braten acc:Fleisch m
W würzen acc:Suppe,Braten,Soße mit+dat:Salz m
W servieren dat:G acc:Suppe,Braten,Salat m
W empfehlen dat:G acc:Braten,Wein,Suppe
W bringen dat:G acc:Rechnung,Speisekarte,Wein
W decken acc:Tisch m
W ab|waschen acc:Teller,Topf,Pfanne,Glas m
W schärfen acc:Messer m
W füllen acc:Glas,Teller,Topf m
G bestellen acc:Suppe,Braten,Salat,Wein
G probieren acc:Suppe,Braten,Wein,Soße m:vorsichtig,gern
G trinken acc:Wein m:langsam,gern
G bezahlen acc:Rechnung
G loben acc:Koch,Köchin,Braten,Suppe m:laut
G warten auf+acc:Rechnung,Kellner,Suppe m:geduldig,lange
Suppe,Braten,Salat,Wein schmecken dat:G m:gut
"""

MOUNTAINS = """
title: Eine Wanderung / In den Bergen / Der Weg zum Gipfel
W der Wanderer -s Wanderer: müde mutig fröhlich
W die Wanderin - Wanderinnen: müde mutig fröhlich
W der Bergführer -s Bergführer: erfahren vorsichtig
W die Bergführerin - Bergführerinnen: erfahren ruhig
G der Wirt -es Wirte: freundlich alt
G die Wirtin - Wirtinnen: freundlich streng
G der Hirte -n Hirten: einsam alt
B der Weg -es Wege: steil schmal lang
B der Berg -es Berge: hoch steil berühmt
T der Rucksack -s Rucksäcke: schwer voll alt
T die Karte - Karten: alt genau nass
B die Brücke - Brücken: schmal alt lang
T das Seil -s Seile: lang dick
T der Stiefel -s Stiefel: schwer nass neu
T das Zelt -es Zelte: klein leicht nass
B der Felsen -s Felsen: steil glatt
M der Schnee -s -: tief weiß nass
M der Nebel -s -: dicht kalt
M der Regen -s -: kalt stark
in das Tal -es Täler: tief grün still
auf der Gipfel -s Gipfel: hoch kahl windig
an der Bach -es Bäche: klar kalt schmal
in die Hütte - Hütten: warm alt einsam
in der Wald -es Wälder: dunkel dicht still
X der Gurt -es Gurte: breit fest < Rucksack
X das Geländer -s Geländer: morsch niedrig < Brücke
W besteigen acc:Berg m
W überqueren acc:Bach,Brücke m
W verlieren acc:Karte,Weg,Seil
W packen acc:Rucksack m
W erreichen acc:Hütte,Gipfel,Tal
W wandern durch+acc:Wald,Tal m:langsam,allein
W klettern auf+acc:Felsen,Berg m
W suchen acc:Weg,Karte,Hütte
W auf|bauen acc:Zelt m
W trocknen acc:Stiefel,Zelt
W sich+aus|ruhen m:lange
W fotografieren acc:Berg,Bach,Hütte
W tragen acc:Rucksack,Zelt,Seil m
W fürchten acc:Nebel,Schnee,Regen
G begrüßen acc:Wanderer,Wanderin,Bergführer m:freundlich
G zeigen dat:W acc:Weg,Brücke,Hütte
G warnen acc:W vor+dat:Nebel,Schnee,Regen
"""

SCHOOL = """
title: In der Schule / Ein Schultag / Die neue Lehrerin
W der Lehrer -s Lehrer: streng geduldig jung
W die Lehrerin - Lehrerinnen: streng geduldig beliebt
W die Rektorin - Rektorinnen: streng klug
G der Schüler -s Schüler: fleißig müde neugierig
G die Schülerin - Schülerinnen: fleißig klug neugierig
T das Buch -es Bücher: dick neu spannend
T das Heft -es Hefte: dünn neu voll
B die Aufgabe - Aufgaben: schwierig leicht lang
T der Aufsatz -es Aufsätze: lang gut kurz
T der Stift -es Stifte: rot spitz neu
B die Frage - Fragen: schwierig klug kurz
B das Gedicht -es Gedichte: schön kurz alt
T die Landkarte - Landkarten: groß bunt alt
B die Prüfung - Prüfungen: schwierig lang wichtig
B die Regel - Regeln: wichtig einfach neu
B der Satz -es Sätze: lang kurz richtig
T die Tafel - Tafeln: groß grün sauber
M der Unterricht -s -: spannend langweilig
M die Kreide - -: weiß bunt
in die Schule - Schulen: alt groß neu
in das Klassenzimmer -s Klassenzimmer: hell voll laut
auf der Schulhof -es Schulhöfe: groß laut leer
in die Turnhalle - Turnhallen: kalt groß
X die Seite - Seiten: leer schmutzig < Buch Heft
X das Ende -s Enden: gut traurig < Gedicht Aufsatz
W erklären dat:G acc:Aufgabe,Regel,Gedicht,Landkarte m:geduldig,genau
W korrigieren acc:Heft,Aufsatz,Prüfung m
W schreiben acc:Satz,Aufgabe,Regel an+acc:Tafel m
W verteilen acc:Heft,Buch,Aufgabe
W loben acc:G,Aufsatz
W stellen dat:G acc:Frage,Aufgabe
W wischen acc:Tafel m:schnell,sorgfältig
W vor|bereiten acc:Prüfung,Unterricht m
G lesen acc:Buch,Gedicht,Satz m:laut,langsam,gern
G lösen acc:Aufgabe m
G lernen acc:Gedicht,Regel m:fleißig,gern
G antworten auf+acc:Frage m:schnell,leise,richtig
G zeichnen acc:Landkarte m
G ab|schreiben acc:Satz,Aufgabe,Gedicht m
G verstehen acc:Aufgabe,Frage,Regel m:sofort
G sich+vor|bereiten auf+acc:Prüfung m:gut,gründlich
G sich+fürchten vor+dat:Prüfung,Frage m:sehr
G vergessen acc:Heft,Buch,Stift
"""
